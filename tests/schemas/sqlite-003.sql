BEGIN TRANSACTION;
CREATE TABLE flujo_schema_versions (
    version INTEGER PRIMARY KEY,
    applied_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%f000+00:00', 'now')),
    name TEXT,
    checksum TEXT,
    duration_ms REAL,
    code_version TEXT,
    min_code INTEGER NOT NULL DEFAULT 0
) STRICT
;
INSERT INTO "flujo_schema_versions" VALUES(1,'2026-11-23T03:19:38.494000+00:00','init','7c7b4cd0c5f33b4b63ed42006395d76f07539b51479bcb2f1eebd2ec1b251d17',3.06912199448561295866e+00,'0.1.0',0);
INSERT INTO "flujo_schema_versions" VALUES(2,'2026-11-23T03:19:38.503000+00:00','metadata_index','fe2e981556cd8d5998c930597077de350cb549fd8f4ed6a7dbd07b27e7d21b3c',0.349812995409593,'0.1.0',0);
INSERT INTO "flujo_schema_versions" VALUES(3,'2026-11-23T03:19:38.511000+00:00','count_by_status','fe5c98375658f4df8a63df28e0b6bd485e12c84803ad84432d99db2e59c7cda9',3.31800001731608062982e-01,'0.1.0',0);
CREATE TABLE flujo_system_state (
    key TEXT NOT NULL PRIMARY KEY,
    document TEXT NOT NULL
) STRICT;
INSERT INTO "flujo_system_state" VALUES('key','{"format":1,"value":{"value":{"":[{"$flujo":"nan"},-0.0,1e+300,10000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000,{"$flujo":["text","\\u0000\\ud800"]}],"a.b":{"''; --":true}},"updated_at":"2026-01-02T03:04:05.678900+00:00"}}');
CREATE TABLE workflow_details (
    run_id TEXT NOT NULL,
    key TEXT NOT NULL,
    document TEXT NOT NULL,
    PRIMARY KEY (run_id, key)
) STRICT;
INSERT INTO "workflow_details" VALUES('full','"started"','{"format":1,"value":"yes"}');
INSERT INTO "workflow_details" VALUES('recorded','"more"','{"format":1,"value":{"":[{"$flujo":"nan"},-0.0,1e+300,10000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000,{"$flujo":["text","\\u0000\\ud800"]}],"a.b":{"''; --":true}}}');
INSERT INTO "workflow_details" VALUES('recorded','"final_context"','{"format":1,"value":{"":[{"$flujo":"nan"},-0.0,1e+300,10000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000,{"$flujo":["text","\\u0000\\ud800"]}],"a.b":{"''; --":true}}}');
CREATE TABLE workflow_evaluations (
    run_id TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    score REAL NOT NULL,
    step_name TEXT,
    created_at TEXT NOT NULL,
    document TEXT NOT NULL,
    PRIMARY KEY (run_id, sequence)
) STRICT;
INSERT INTO "workflow_evaluations" VALUES('full',5,0.5,NULL,'2026-01-02T03:04:05.678900+00:00','{"format":1,"value":{"run_id":"full","step_name":null,"score":0.5,"feedback":"good","metadata":{},"created_at":"2026-01-02T03:04:05.678900+00:00"}}');
CREATE TABLE workflow_history (
    run_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    digest BLOB NOT NULL,
    entry TEXT NOT NULL,
    PRIMARY KEY (run_id, position)
) STRICT;
INSERT INTO "workflow_history" VALUES('full',0,X'962C5ABFE906302749276B5C996438F5','{"entry":0,"of":0}');
INSERT INTO "workflow_history" VALUES('full',1,X'D72B3CFDBE9C21ECAE570FD586781470','{"entry":1,"of":3}');
INSERT INTO "workflow_history" VALUES('full',2,X'4F079B88AF28BF49C001D7FA5A91AA5C','{"entry":2,"of":3}');
INSERT INTO "workflow_history" VALUES('full',3,X'6EF10BA4BA1FDC295BCAC54520CAC786','{"entry":3,"of":0}');
INSERT INTO "workflow_history" VALUES('full',4,X'4B31F9896FE2682F7A22E4B2E6B9F481','{"entry":4,"of":3}');
INSERT INTO "workflow_history" VALUES('full',5,X'6A64559186BBBB684770352D06FBE720','{"entry":5,"of":3}');
INSERT INTO "workflow_history" VALUES('full',6,X'EE87B59E88FCD1FB889576D2B79CEC6B','{"entry":6,"of":0}');
INSERT INTO "workflow_history" VALUES('full',7,X'28EF80356DB4B2EED9DCA521BCF128FB','{"entry":7,"of":3}');
INSERT INTO "workflow_history" VALUES('full',8,X'093432E1FD3FDCDB522BE228D09AA0B5','{"entry":8,"of":3}');
INSERT INTO "workflow_history" VALUES('full',9,X'95F9D6FA01C9B74DD7777CC61189CBC4','{"entry":9,"of":0}');
INSERT INTO "workflow_history" VALUES('full',10,X'A49FDC444ECD0255A90D753436BD9715','{"entry":10,"of":3}');
INSERT INTO "workflow_history" VALUES('full',11,X'F7FDF2AB692778392DD4A1B5A69A60C1','{"entry":11,"of":3}');
INSERT INTO "workflow_history" VALUES('full',12,X'0EE2242DD241A6C97B041DF0FDF54F94','{"entry":12,"of":0}');
INSERT INTO "workflow_history" VALUES('saved',0,X'962C5ABFE906302749276B5C996438F5','{"entry":0,"of":0}');
INSERT INTO "workflow_history" VALUES('saved',1,X'5EA0E621E84535DCE1C20B1B2DA971D8','{"entry":1,"of":2}');
INSERT INTO "workflow_history" VALUES('saved',2,X'61A2080102D46914A39D8171E1A96622','{"entry":2,"of":2}');
INSERT INTO "workflow_history" VALUES('saved',3,X'6EF10BA4BA1FDC295BCAC54520CAC786','{"entry":3,"of":0}');
INSERT INTO "workflow_history" VALUES('saved',4,X'196E53374493D6662CB89014AB638A45','{"entry":4,"of":2}');
INSERT INTO "workflow_history" VALUES('saved',5,X'2FB619302FAE396B644B459A1D0AC44C','{"entry":5,"of":2}');
INSERT INTO "workflow_history" VALUES('saved',6,X'EE87B59E88FCD1FB889576D2B79CEC6B','{"entry":6,"of":0}');
INSERT INTO "workflow_history" VALUES('saved',7,X'A2225B12DA8BD3FAF81A15DF18B54AAC','{"entry":7,"of":2}');
INSERT INTO "workflow_history" VALUES('saved',8,X'1CE6A2FE948C938954C9E44549BF8C5F','{"entry":8,"of":2}');
INSERT INTO "workflow_history" VALUES('saved',9,X'95F9D6FA01C9B74DD7777CC61189CBC4','{"entry":9,"of":0}');
CREATE TABLE workflow_metadata_terms (
    term INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    run_id TEXT NOT NULL,
    PRIMARY KEY (term, created_at, run_id)
) STRICT, WITHOUT ROWID;
INSERT INTO "workflow_metadata_terms" VALUES(-8374762766547100641,'2026-01-02T03:04:05.678900+00:00','recorded');
INSERT INTO "workflow_metadata_terms" VALUES(-6294992398860291642,'2026-01-02T03:04:05.678900+00:00','recorded');
INSERT INTO "workflow_metadata_terms" VALUES(-3889144126974471777,'2026-01-02T03:04:05.678900+00:00','saved');
INSERT INTO "workflow_metadata_terms" VALUES(-3772983293704911013,'2026-01-02T03:04:05.678900+00:00','full');
INSERT INTO "workflow_metadata_terms" VALUES(-2885045854137761256,'2026-01-02T03:04:05.678900+00:00','full');
INSERT INTO "workflow_metadata_terms" VALUES(312991542087273249,'2026-01-02T03:04:05.678900+00:00','recorded');
INSERT INTO "workflow_metadata_terms" VALUES(470463825031469372,'2026-01-02T03:04:05.678900+00:00','recorded');
INSERT INTO "workflow_metadata_terms" VALUES(5324264075710212792,'2026-01-02T03:04:05.678900+00:00','saved');
CREATE TABLE workflow_spans (
    run_id TEXT NOT NULL,
    span_id TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    from_trace INTEGER NOT NULL,
    name TEXT NOT NULL,
    status TEXT NOT NULL,
    start_time REAL NOT NULL,
    end_time REAL,
    document TEXT NOT NULL,
    PRIMARY KEY (run_id, span_id)
) STRICT;
INSERT INTO "workflow_spans" VALUES('full','t',2,1,'trace','running',0.0,1.0,'{"format":1,"value":{"span_id":"t","parent_span_id":null,"name":"trace","start_time":0.0,"end_time":1.0,"status":"running","attributes":{},"created_at":"2026-01-02T03:04:05.678900+00:00"}}');
INSERT INTO "workflow_spans" VALUES('full','a',3,0,'span','running',1.0,NULL,'{"format":1,"value":{"span_id":"a","parent_span_id":null,"name":"span","start_time":1.0,"end_time":null,"status":"running","attributes":{},"created_at":"2026-01-02T03:04:05.678900+00:00"}}');
INSERT INTO "workflow_spans" VALUES('full','b',4,0,'span','running',2.0,NULL,'{"format":1,"value":{"span_id":"b","parent_span_id":null,"name":"span","start_time":2.0,"end_time":null,"status":"running","attributes":{},"created_at":"2026-01-02T03:04:05.678900+00:00"}}');
CREATE TABLE workflow_state (
    run_id TEXT NOT NULL PRIMARY KEY,
    operation_id BLOB NOT NULL,
    listed INTEGER NOT NULL,
    pipeline_id TEXT NOT NULL,
    pipeline_name TEXT NOT NULL,
    pipeline_version TEXT NOT NULL,
    status TEXT NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    end_time TEXT,
    current_step_index INTEGER NOT NULL,
    total_steps INTEGER NOT NULL,
    error_message TEXT,
    execution_time_ms REAL,
    memory_usage_mb REAL,
    total_cost REAL,
    is_background_task INTEGER NOT NULL,
    parent_run_id TEXT,
    task_id TEXT,
    background_error TEXT,
    revision INTEGER NOT NULL,
    run TEXT NOT NULL,
    metadata TEXT NOT NULL,
    snapshot TEXT
) STRICT;
INSERT INTO "workflow_state" VALUES('full',X'8289A45A4E424631D16178B57B05163F',1,'p','p','1','running','2026-01-02T03:04:05.678900+00:00','2026-01-02T03:04:05.678900+00:00',NULL,0,0,'3',NULL,NULL,0.5,0,NULL,NULL,NULL,2,'{"format":1,"value":{"run_id":"full","created_at":"2026-01-02T03:04:05.678900+00:00","listed":true,"more":true,"recorded_run":true,"identity":["p","p","1"],"revision":2,"sequence":5,"saved_at":"2026-01-02T03:04:05.678900+00:00","recorded_at":"2026-01-02T03:04:05.678900+00:00","saved_status":"running","recorded_status":"running","saved":{"current_step_index":0,"error_message":"3","metadata":{"of":"full","n":3}},"steps_cost":"0.5/1"}}','{"of":"full","n":3}','{"format":1,"value":{"pipeline_id":"p","pipeline_name":"p","pipeline_version":"1","current_step_index":0,"step_history":null,"metadata":{"of":"full","n":3},"mine":3,"error_message":"3","updated_at":"2026-01-02T03:04:05.678900+00:00"}}');
INSERT INTO "workflow_state" VALUES('saved',X'C90D4AF42A33A90AE762B406E4468FEB',1,'p','p','1','completed','2026-01-02T03:04:05.678900+00:00','2026-01-02T03:04:05.678900+00:00','2026-01-02T03:04:05.678900+00:00',0,0,'2',NULL,NULL,NULL,1,'full','t',NULL,1,'{"format":1,"value":{"run_id":"saved","created_at":"2026-01-02T03:04:05.678900+00:00","listed":true,"identity":["p","p","1"],"revision":1,"saved_at":"2026-01-02T03:04:05.678900+00:00","saved_status":"completed","saved":{"current_step_index":0,"error_message":"2","is_background_task":true,"parent_run_id":"full","task_id":"t","metadata":{"of":"saved","n":2}}}}','{"of":"saved","n":2}','{"format":1,"value":{"pipeline_id":"p","pipeline_name":"p","pipeline_version":"1","current_step_index":0,"step_history":null,"metadata":{"of":"saved","n":2},"mine":2,"error_message":"2","status":"completed","is_background_task":true,"parent_run_id":"full","task_id":"t","updated_at":"2026-01-02T03:04:05.678900+00:00"}}');
INSERT INTO "workflow_state" VALUES('recorded',X'0AF03BF577322A64D1BA1F64E50BD10E',1,'unknown','unknown','latest','failed','2026-01-02T03:04:05.678900+00:00','2026-01-02T03:04:05.678900+00:00','2026-01-02T03:04:05.678900+00:00',0,0,'no�thing',NULL,NULL,NULL,0,NULL,NULL,NULL,0,'{"format":1,"value":{"run_id":"recorded","created_at":"2026-01-02T03:04:05.678900+00:00","listed":true,"more":true,"recorded_run":true,"identity":[null,null,null],"recorded_at":"2026-01-02T03:04:05.678900+00:00","recorded_status":"failed","recorded":{"metadata":{"tags":["a",{"b":1.0}]},"error_message":{"$flujo":["text","no\\u0000thing"]}}}}','{"tags":["a",{"b":1.0}]}',NULL);
INSERT INTO "workflow_state" VALUES('placeholder',X'040B3DE2C509B54A47A9587D26535F75',0,'unknown','unknown','latest','running','2026-01-02T03:04:05.678900+00:00','2026-01-02T03:04:05.678900+00:00',NULL,0,0,NULL,NULL,NULL,NULL,0,NULL,NULL,NULL,0,'{"format":1,"value":{"run_id":"placeholder","created_at":"2026-01-02T03:04:05.678900+00:00","more":true,"identity":[null,null,null],"sequence":1,"recorded_at":"2026-01-02T03:04:05.678900+00:00"}}','{}',NULL);
CREATE TABLE workflow_steps (
    run_id TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    record_id TEXT,
    step_index INTEGER NOT NULL,
    step_name TEXT NOT NULL,
    status TEXT NOT NULL,
    cost_usd REAL,
    created_at TEXT NOT NULL,
    document TEXT NOT NULL,
    PRIMARY KEY (run_id, sequence)
) STRICT;
INSERT INTO "workflow_steps" VALUES('full',1,'one',0,'s','completed',0.5,'2026-01-02T03:04:05.678900+00:00','{"format":1,"value":{"run_id":"full","step_name":"s","step_index":0,"status":"completed","output":null,"raw_response":null,"cost_usd":0.5,"token_counts":null,"execution_time_ms":null,"created_at":"2026-01-02T03:04:05.678900+00:00","step_run_id":null,"record_id":"one","start_time":null,"end_time":null,"input":null,"error":null}}');
INSERT INTO "workflow_steps" VALUES('placeholder',1,NULL,7,'é','completed',NULL,'2026-01-02T03:04:05.678900+00:00','{"format":1,"value":{"run_id":"placeholder","step_name":"é","step_index":7,"status":"completed","output":{"":[{"$flujo":"nan"},-0.0,1e+300,10000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000,{"$flujo":["text","\\u0000\\ud800"]}],"a.b":{"''; --":true}},"raw_response":null,"cost_usd":null,"token_counts":null,"execution_time_ms":null,"created_at":"2026-01-02T03:04:05.678900+00:00","step_run_id":null,"record_id":null,"start_time":null,"end_time":null,"input":null,"error":null}}');
CREATE TABLE workflow_traces (
    run_id TEXT NOT NULL PRIMARY KEY,
    document TEXT NOT NULL
) STRICT;
INSERT INTO "workflow_traces" VALUES('full','{"format":1,"value":{"span_id":"t","name":"trace","end_time":1}}');
CREATE INDEX idx_workflow_state_created_at ON workflow_state (created_at, run_id);
CREATE INDEX idx_workflow_state_updated_at ON workflow_state (updated_at, run_id);
CREATE INDEX idx_workflow_state_pipeline_id ON workflow_state (pipeline_id, created_at, run_id);
CREATE INDEX idx_workflow_state_pipeline_name ON workflow_state (pipeline_name, created_at, run_id);
CREATE INDEX idx_workflow_state_parent_run_id ON workflow_state (parent_run_id, created_at, run_id)
    WHERE parent_run_id IS NOT NULL;
CREATE INDEX idx_workflow_state_background ON workflow_state (created_at, run_id) WHERE is_background_task = 1;
CREATE INDEX idx_workflow_state_background_status ON workflow_state (status, created_at, run_id)
    WHERE is_background_task = 1;
CREATE UNIQUE INDEX idx_workflow_steps_record_id ON workflow_steps (run_id, record_id) WHERE record_id IS NOT NULL;
CREATE INDEX idx_workflow_evaluations_created_at ON workflow_evaluations (created_at, run_id, sequence);
CREATE INDEX idx_workflow_state_status ON workflow_state (status, created_at, run_id, listed);
COMMIT;
PRAGMA user_version = 3;
PRAGMA application_id = 1179407690;
