-- The tables. Run with search_path set to the schema they belong to.

-- One row a run. "run" is what the library reads; the columns before it are made from it, for filters and for SQL.
CREATE TABLE workflow_state (
    run_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    operation_id BYTEA NOT NULL,
    listed BOOLEAN NOT NULL,
    pipeline_id TEXT COLLATE "C" NOT NULL,
    pipeline_name TEXT COLLATE "C" NOT NULL,
    pipeline_version TEXT COLLATE "C" NOT NULL,
    status TEXT COLLATE "C" NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    end_time TIMESTAMPTZ,
    current_step_index BIGINT NOT NULL,
    total_steps BIGINT NOT NULL,
    error_message TEXT,
    execution_time_ms DOUBLE PRECISION,
    memory_usage_mb DOUBLE PRECISION,
    total_cost DOUBLE PRECISION,
    is_background_task BOOLEAN NOT NULL,
    parent_run_id TEXT COLLATE "C",
    task_id TEXT COLLATE "C",
    background_error TEXT,
    revision BIGINT NOT NULL,
    run JSON NOT NULL,
    metadata JSONB NOT NULL,
    snapshot JSON
);

CREATE INDEX idx_workflow_state_created_at ON workflow_state (created_at, run_id);
CREATE INDEX idx_workflow_state_updated_at ON workflow_state (updated_at, run_id);
CREATE INDEX idx_workflow_state_status ON workflow_state (status, created_at, run_id);
CREATE INDEX idx_workflow_state_pipeline_id ON workflow_state (pipeline_id, created_at);
CREATE INDEX idx_workflow_state_pipeline_name ON workflow_state (pipeline_name, created_at);
CREATE INDEX idx_workflow_state_parent_run_id ON workflow_state (parent_run_id, created_at)
    WHERE parent_run_id IS NOT NULL;
CREATE INDEX idx_workflow_state_background ON workflow_state (created_at, run_id) WHERE is_background_task;
CREATE INDEX idx_workflow_state_background_status ON workflow_state (status, created_at) WHERE is_background_task;

-- The entries of step_history, a row each, so that a save writes only those that changed.
CREATE TABLE workflow_history (
    run_id TEXT COLLATE "C" NOT NULL,
    position INTEGER NOT NULL,
    digest BYTEA NOT NULL,
    entry JSON NOT NULL,
    PRIMARY KEY (run_id, position)
);

CREATE TABLE workflow_steps (
    run_id TEXT COLLATE "C" NOT NULL,
    sequence BIGINT NOT NULL,
    record_id TEXT COLLATE "C",
    step_index BIGINT NOT NULL,
    step_name TEXT COLLATE "C" NOT NULL,
    status TEXT COLLATE "C" NOT NULL,
    cost_usd DOUBLE PRECISION,
    created_at TIMESTAMPTZ NOT NULL,
    document JSON NOT NULL,
    PRIMARY KEY (run_id, sequence)
);

CREATE UNIQUE INDEX idx_workflow_steps_record_id ON workflow_steps (run_id, record_id) WHERE record_id IS NOT NULL;

CREATE TABLE workflow_spans (
    run_id TEXT COLLATE "C" NOT NULL,
    span_id TEXT COLLATE "C" NOT NULL,
    sequence BIGINT NOT NULL,
    from_trace BOOLEAN NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    status TEXT COLLATE "C" NOT NULL,
    start_time DOUBLE PRECISION NOT NULL,
    end_time DOUBLE PRECISION,
    document JSON NOT NULL,
    PRIMARY KEY (run_id, span_id)
);

CREATE TABLE workflow_traces (
    run_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    document JSON NOT NULL
);

-- What else was given to save_run_start and save_run_end, by the hash of its key; a key is a JSON text of any length.
CREATE TABLE workflow_details (
    run_id TEXT COLLATE "C" NOT NULL,
    key_hash BYTEA NOT NULL,
    key TEXT NOT NULL,
    document JSON NOT NULL,
    PRIMARY KEY (run_id, key_hash)
);

CREATE TABLE workflow_evaluations (
    run_id TEXT COLLATE "C" NOT NULL,
    sequence BIGINT NOT NULL,
    score DOUBLE PRECISION NOT NULL,
    step_name TEXT COLLATE "C",
    created_at TIMESTAMPTZ NOT NULL,
    document JSON NOT NULL,
    PRIMARY KEY (run_id, sequence)
);

CREATE INDEX idx_workflow_evaluations_created_at ON workflow_evaluations (created_at, run_id);

CREATE TABLE flujo_system_state (
    key TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    document JSON NOT NULL
);
