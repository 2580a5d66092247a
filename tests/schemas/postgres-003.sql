CREATE TABLE public.flujo_schema_versions (
    version integer NOT NULL,
    applied_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    name text,
    checksum text,
    duration_ms double precision,
    code_version text,
    min_code integer DEFAULT 0 NOT NULL
);
CREATE TABLE public.flujo_system_state (
    key text NOT NULL COLLATE pg_catalog."C",
    document json NOT NULL
);
CREATE TABLE public.workflow_details (
    run_id text NOT NULL COLLATE pg_catalog."C",
    key_hash bytea NOT NULL,
    key text NOT NULL,
    document json NOT NULL
);
CREATE TABLE public.workflow_evaluations (
    run_id text NOT NULL COLLATE pg_catalog."C",
    sequence bigint NOT NULL,
    score double precision NOT NULL,
    step_name text COLLATE pg_catalog."C",
    created_at timestamp with time zone NOT NULL,
    document json NOT NULL
);
CREATE TABLE public.workflow_history (
    run_id text NOT NULL COLLATE pg_catalog."C",
    "position" integer NOT NULL,
    digest bytea NOT NULL,
    entry json NOT NULL
);
CREATE TABLE public.workflow_spans (
    run_id text NOT NULL COLLATE pg_catalog."C",
    span_id text NOT NULL COLLATE pg_catalog."C",
    sequence bigint NOT NULL,
    from_trace boolean NOT NULL,
    name text NOT NULL COLLATE pg_catalog."C",
    status text NOT NULL COLLATE pg_catalog."C",
    start_time double precision NOT NULL,
    end_time double precision,
    document json NOT NULL
);
CREATE TABLE public.workflow_state (
    run_id text NOT NULL COLLATE pg_catalog."C",
    operation_id bytea NOT NULL,
    listed boolean NOT NULL,
    pipeline_id text NOT NULL COLLATE pg_catalog."C",
    pipeline_name text NOT NULL COLLATE pg_catalog."C",
    pipeline_version text NOT NULL COLLATE pg_catalog."C",
    status text NOT NULL COLLATE pg_catalog."C",
    created_at timestamp with time zone NOT NULL,
    updated_at timestamp with time zone NOT NULL,
    end_time timestamp with time zone,
    current_step_index bigint NOT NULL,
    total_steps bigint NOT NULL,
    error_message text,
    execution_time_ms double precision,
    memory_usage_mb double precision,
    total_cost double precision,
    is_background_task boolean NOT NULL,
    parent_run_id text COLLATE pg_catalog."C",
    task_id text COLLATE pg_catalog."C",
    background_error text,
    revision bigint NOT NULL,
    run json NOT NULL,
    metadata jsonb NOT NULL,
    snapshot json
);
CREATE TABLE public.workflow_steps (
    run_id text NOT NULL COLLATE pg_catalog."C",
    sequence bigint NOT NULL,
    record_id text COLLATE pg_catalog."C",
    step_index bigint NOT NULL,
    step_name text NOT NULL COLLATE pg_catalog."C",
    status text NOT NULL COLLATE pg_catalog."C",
    cost_usd double precision,
    created_at timestamp with time zone NOT NULL,
    document json NOT NULL
);
CREATE TABLE public.workflow_traces (
    run_id text NOT NULL COLLATE pg_catalog."C",
    document json NOT NULL
);
INSERT INTO public.flujo_schema_versions VALUES (1, '2026-11-23 03:19:38.800699+00', 'init', 'd24187407883311219dbb4569cbffcd70c4b7774d5171d1e40935be78271e4b9', 76.2276719979127, '0.1.0', 0);
INSERT INTO public.flujo_schema_versions VALUES (2, '2026-11-23 03:19:38.832346+00', 'metadata_index', '250295fc72c8735087a9bd0d852207f2384556026a87021f7d04dcaba00ba49b', 1.9512639992171898, '0.1.0', 0);
INSERT INTO public.flujo_schema_versions VALUES (3, '2026-11-23 03:19:38.873795+00', 'count_by_status', '5f843c6b2539232742de19bb899ff803d621e96c268d75c2cb8dabeed842ce66', 8.507819999067578, '0.1.0', 0);
INSERT INTO public.flujo_system_state VALUES ('key', '{"format":1,"value":{"value":{"":[{"$flujo":"nan"},-0.0,1e+300,10000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000,{"$flujo":["text","\\u0000\\ud800"]}],"a.b":{"''; --":true}},"updated_at":"2026-01-02T03:04:05.678900+00:00"}}');
INSERT INTO public.workflow_details VALUES ('full', '\x66967c3c8be87735db13483ffcf1634b', '"started"', '{"format":1,"value":"yes"}');
INSERT INTO public.workflow_details VALUES ('recorded', '\xba2a8232349d2f54e00d91cf3585cb9d', '"more"', '{"format":1,"value":{"":[{"$flujo":"nan"},-0.0,1e+300,10000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000,{"$flujo":["text","\\u0000\\ud800"]}],"a.b":{"''; --":true}}}');
INSERT INTO public.workflow_details VALUES ('recorded', '\xa9230da4f18a56163fa034f28c57f6ca', '"final_context"', '{"format":1,"value":{"":[{"$flujo":"nan"},-0.0,1e+300,10000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000,{"$flujo":["text","\\u0000\\ud800"]}],"a.b":{"''; --":true}}}');
INSERT INTO public.workflow_evaluations VALUES ('full', 5, 0.5, NULL, '2026-01-02 03:04:05.6789+00', '{"format":1,"value":{"run_id":"full","step_name":null,"score":0.5,"feedback":"good","metadata":{},"created_at":"2026-01-02T03:04:05.678900+00:00"}}');
INSERT INTO public.workflow_history VALUES ('full', 0, '\x962c5abfe906302749276b5c996438f5', '{"entry":0,"of":0}');
INSERT INTO public.workflow_history VALUES ('full', 3, '\x6ef10ba4ba1fdc295bcac54520cac786', '{"entry":3,"of":0}');
INSERT INTO public.workflow_history VALUES ('full', 6, '\xee87b59e88fcd1fb889576d2b79cec6b', '{"entry":6,"of":0}');
INSERT INTO public.workflow_history VALUES ('full', 1, '\xd72b3cfdbe9c21ecae570fd586781470', '{"entry":1,"of":3}');
INSERT INTO public.workflow_history VALUES ('full', 2, '\x4f079b88af28bf49c001d7fa5a91aa5c', '{"entry":2,"of":3}');
INSERT INTO public.workflow_history VALUES ('full', 4, '\x4b31f9896fe2682f7a22e4b2e6b9f481', '{"entry":4,"of":3}');
INSERT INTO public.workflow_history VALUES ('full', 5, '\x6a64559186bbbb684770352d06fbe720', '{"entry":5,"of":3}');
INSERT INTO public.workflow_history VALUES ('full', 7, '\x28ef80356db4b2eed9dca521bcf128fb', '{"entry":7,"of":3}');
INSERT INTO public.workflow_history VALUES ('full', 8, '\x093432e1fd3fdcdb522be228d09aa0b5', '{"entry":8,"of":3}');
INSERT INTO public.workflow_history VALUES ('full', 9, '\x95f9d6fa01c9b74dd7777cc61189cbc4', '{"entry":9,"of":0}');
INSERT INTO public.workflow_history VALUES ('full', 10, '\xa49fdc444ecd0255a90d753436bd9715', '{"entry":10,"of":3}');
INSERT INTO public.workflow_history VALUES ('full', 11, '\xf7fdf2ab692778392dd4a1b5a69a60c1', '{"entry":11,"of":3}');
INSERT INTO public.workflow_history VALUES ('full', 12, '\x0ee2242dd241a6c97b041df0fdf54f94', '{"entry":12,"of":0}');
INSERT INTO public.workflow_history VALUES ('saved', 0, '\x962c5abfe906302749276b5c996438f5', '{"entry":0,"of":0}');
INSERT INTO public.workflow_history VALUES ('saved', 1, '\x5ea0e621e84535dce1c20b1b2da971d8', '{"entry":1,"of":2}');
INSERT INTO public.workflow_history VALUES ('saved', 2, '\x61a2080102d46914a39d8171e1a96622', '{"entry":2,"of":2}');
INSERT INTO public.workflow_history VALUES ('saved', 3, '\x6ef10ba4ba1fdc295bcac54520cac786', '{"entry":3,"of":0}');
INSERT INTO public.workflow_history VALUES ('saved', 4, '\x196e53374493d6662cb89014ab638a45', '{"entry":4,"of":2}');
INSERT INTO public.workflow_history VALUES ('saved', 5, '\x2fb619302fae396b644b459a1d0ac44c', '{"entry":5,"of":2}');
INSERT INTO public.workflow_history VALUES ('saved', 6, '\xee87b59e88fcd1fb889576d2b79cec6b', '{"entry":6,"of":0}');
INSERT INTO public.workflow_history VALUES ('saved', 7, '\xa2225b12da8bd3faf81a15df18b54aac', '{"entry":7,"of":2}');
INSERT INTO public.workflow_history VALUES ('saved', 8, '\x1ce6a2fe948c938954c9e44549bf8c5f', '{"entry":8,"of":2}');
INSERT INTO public.workflow_history VALUES ('saved', 9, '\x95f9d6fa01c9b74dd7777cc61189cbc4', '{"entry":9,"of":0}');
INSERT INTO public.workflow_spans VALUES ('full', 't', 2, true, 'trace', 'running', 0, 1, '{"format":1,"value":{"span_id":"t","parent_span_id":null,"name":"trace","start_time":0.0,"end_time":1.0,"status":"running","attributes":{},"created_at":"2026-01-02T03:04:05.678900+00:00"}}');
INSERT INTO public.workflow_spans VALUES ('full', 'a', 3, false, 'span', 'running', 1, NULL, '{"format":1,"value":{"span_id":"a","parent_span_id":null,"name":"span","start_time":1.0,"end_time":null,"status":"running","attributes":{},"created_at":"2026-01-02T03:04:05.678900+00:00"}}');
INSERT INTO public.workflow_spans VALUES ('full', 'b', 4, false, 'span', 'running', 2, NULL, '{"format":1,"value":{"span_id":"b","parent_span_id":null,"name":"span","start_time":2.0,"end_time":null,"status":"running","attributes":{},"created_at":"2026-01-02T03:04:05.678900+00:00"}}');
INSERT INTO public.workflow_state VALUES ('full', '\xa93e120560f70869ee824d45913c9ee4', true, 'p', 'p', '1', 'running', '2026-01-02 03:04:05.6789+00', '2026-01-02 03:04:05.6789+00', NULL, 0, 0, '3', NULL, NULL, 0.5, false, NULL, NULL, NULL, 2, '{"format":1,"value":{"run_id":"full","created_at":"2026-01-02T03:04:05.678900+00:00","listed":true,"more":true,"recorded_run":true,"identity":["p","p","1"],"revision":2,"sequence":5,"saved_at":"2026-01-02T03:04:05.678900+00:00","recorded_at":"2026-01-02T03:04:05.678900+00:00","saved_status":"running","recorded_status":"running","saved":{"current_step_index":0,"error_message":"3","metadata":{"of":"full","n":3}},"steps_cost":"0.5/1"}}', '{"n": 3, "of": "full"}', '{"format":1,"value":{"pipeline_id":"p","pipeline_name":"p","pipeline_version":"1","current_step_index":0,"step_history":null,"metadata":{"of":"full","n":3},"mine":3,"error_message":"3","updated_at":"2026-01-02T03:04:05.678900+00:00"}}');
INSERT INTO public.workflow_state VALUES ('saved', '\xc2615b0d09e09c670023fc65b9222910', true, 'p', 'p', '1', 'completed', '2026-01-02 03:04:05.6789+00', '2026-01-02 03:04:05.6789+00', '2026-01-02 03:04:05.6789+00', 0, 0, '2', NULL, NULL, NULL, true, 'full', 't', NULL, 1, '{"format":1,"value":{"run_id":"saved","created_at":"2026-01-02T03:04:05.678900+00:00","listed":true,"identity":["p","p","1"],"revision":1,"saved_at":"2026-01-02T03:04:05.678900+00:00","saved_status":"completed","saved":{"current_step_index":0,"error_message":"2","is_background_task":true,"parent_run_id":"full","task_id":"t","metadata":{"of":"saved","n":2}}}}', '{"n": 2, "of": "saved"}', '{"format":1,"value":{"pipeline_id":"p","pipeline_name":"p","pipeline_version":"1","current_step_index":0,"step_history":null,"metadata":{"of":"saved","n":2},"mine":2,"error_message":"2","status":"completed","is_background_task":true,"parent_run_id":"full","task_id":"t","updated_at":"2026-01-02T03:04:05.678900+00:00"}}');
INSERT INTO public.workflow_state VALUES ('recorded', '\x0a4c8290de3899de1909cab3bcfdcd4d', true, 'unknown', 'unknown', 'latest', 'failed', '2026-01-02 03:04:05.6789+00', '2026-01-02 03:04:05.6789+00', '2026-01-02 03:04:05.6789+00', 0, 0, 'no�thing', NULL, NULL, NULL, false, NULL, NULL, NULL, 0, '{"format":1,"value":{"run_id":"recorded","created_at":"2026-01-02T03:04:05.678900+00:00","listed":true,"more":true,"recorded_run":true,"identity":[null,null,null],"recorded_at":"2026-01-02T03:04:05.678900+00:00","recorded_status":"failed","recorded":{"metadata":{"tags":["a",{"b":1.0}]},"error_message":{"$flujo":["text","no\\u0000thing"]}}}}', '{"tags": ["a", {"b": 1.0}]}', NULL);
INSERT INTO public.workflow_state VALUES ('placeholder', '\xaa90dbecbcc333b0d839ca9f3ba3ca36', false, 'unknown', 'unknown', 'latest', 'running', '2026-01-02 03:04:05.6789+00', '2026-01-02 03:04:05.6789+00', NULL, 0, 0, NULL, NULL, NULL, NULL, false, NULL, NULL, NULL, 0, '{"format":1,"value":{"run_id":"placeholder","created_at":"2026-01-02T03:04:05.678900+00:00","more":true,"identity":[null,null,null],"sequence":1,"recorded_at":"2026-01-02T03:04:05.678900+00:00"}}', '{}', NULL);
INSERT INTO public.workflow_steps VALUES ('full', 1, 'one', 0, 's', 'completed', 0.5, '2026-01-02 03:04:05.6789+00', '{"format":1,"value":{"run_id":"full","step_name":"s","step_index":0,"status":"completed","output":null,"raw_response":null,"cost_usd":0.5,"token_counts":null,"execution_time_ms":null,"created_at":"2026-01-02T03:04:05.678900+00:00","step_run_id":null,"record_id":"one","start_time":null,"end_time":null,"input":null,"error":null}}');
INSERT INTO public.workflow_steps VALUES ('placeholder', 1, NULL, 7, 'é', 'completed', NULL, '2026-01-02 03:04:05.6789+00', '{"format":1,"value":{"run_id":"placeholder","step_name":"é","step_index":7,"status":"completed","output":{"":[{"$flujo":"nan"},-0.0,1e+300,10000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000,{"$flujo":["text","\\u0000\\ud800"]}],"a.b":{"''; --":true}},"raw_response":null,"cost_usd":null,"token_counts":null,"execution_time_ms":null,"created_at":"2026-01-02T03:04:05.678900+00:00","step_run_id":null,"record_id":null,"start_time":null,"end_time":null,"input":null,"error":null}}');
INSERT INTO public.workflow_traces VALUES ('full', '{"format":1,"value":{"span_id":"t","name":"trace","end_time":1}}');
ALTER TABLE ONLY public.flujo_schema_versions
    ADD CONSTRAINT flujo_schema_versions_pkey PRIMARY KEY (version);
ALTER TABLE ONLY public.flujo_system_state
    ADD CONSTRAINT flujo_system_state_pkey PRIMARY KEY (key);
ALTER TABLE ONLY public.workflow_details
    ADD CONSTRAINT workflow_details_pkey PRIMARY KEY (run_id, key_hash);
ALTER TABLE ONLY public.workflow_evaluations
    ADD CONSTRAINT workflow_evaluations_pkey PRIMARY KEY (run_id, sequence);
ALTER TABLE ONLY public.workflow_history
    ADD CONSTRAINT workflow_history_pkey PRIMARY KEY (run_id, "position");
ALTER TABLE ONLY public.workflow_spans
    ADD CONSTRAINT workflow_spans_pkey PRIMARY KEY (run_id, span_id);
ALTER TABLE ONLY public.workflow_state
    ADD CONSTRAINT workflow_state_pkey PRIMARY KEY (run_id);
ALTER TABLE ONLY public.workflow_steps
    ADD CONSTRAINT workflow_steps_pkey PRIMARY KEY (run_id, sequence);
ALTER TABLE ONLY public.workflow_traces
    ADD CONSTRAINT workflow_traces_pkey PRIMARY KEY (run_id);
CREATE INDEX idx_workflow_evaluations_created_at ON public.workflow_evaluations USING btree (created_at, run_id);
CREATE INDEX idx_workflow_state_background ON public.workflow_state USING btree (created_at, run_id) WHERE is_background_task;
CREATE INDEX idx_workflow_state_background_status ON public.workflow_state USING btree (status, created_at) WHERE is_background_task;
CREATE INDEX idx_workflow_state_created_at ON public.workflow_state USING btree (created_at, run_id);
CREATE INDEX idx_workflow_state_metadata_gin ON public.workflow_state USING gin (metadata jsonb_path_ops) WITH (gin_pending_list_limit='256');
CREATE INDEX idx_workflow_state_parent_run_id ON public.workflow_state USING btree (parent_run_id, created_at) WHERE (parent_run_id IS NOT NULL);
CREATE INDEX idx_workflow_state_pipeline_id ON public.workflow_state USING btree (pipeline_id, created_at);
CREATE INDEX idx_workflow_state_pipeline_name ON public.workflow_state USING btree (pipeline_name, created_at);
CREATE INDEX idx_workflow_state_status ON public.workflow_state USING btree (status, created_at, run_id, listed);
CREATE INDEX idx_workflow_state_updated_at ON public.workflow_state USING btree (updated_at, run_id);
CREATE UNIQUE INDEX idx_workflow_steps_record_id ON public.workflow_steps USING btree (run_id, record_id) WHERE (record_id IS NOT NULL);
