-- The tables. Times are ISO 8601 text in UTC of fixed width, so that they sort as text.

-- One row a run. "run" is what the library reads; the columns before it are made from it, for filters and for SQL.
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

CREATE INDEX idx_workflow_state_created_at ON workflow_state (created_at, run_id);
CREATE INDEX idx_workflow_state_updated_at ON workflow_state (updated_at, run_id);
CREATE INDEX idx_workflow_state_status ON workflow_state (status, created_at, run_id);
CREATE INDEX idx_workflow_state_pipeline_id ON workflow_state (pipeline_id, created_at, run_id);
CREATE INDEX idx_workflow_state_pipeline_name ON workflow_state (pipeline_name, created_at, run_id);
CREATE INDEX idx_workflow_state_parent_run_id ON workflow_state (parent_run_id, created_at, run_id)
    WHERE parent_run_id IS NOT NULL;
CREATE INDEX idx_workflow_state_background ON workflow_state (created_at, run_id) WHERE is_background_task = 1;
CREATE INDEX idx_workflow_state_background_status ON workflow_state (status, created_at, run_id)
    WHERE is_background_task = 1;

-- The entries of step_history, a row each, so that a save writes only those that changed.
CREATE TABLE workflow_history (
    run_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    digest BLOB NOT NULL,
    entry TEXT NOT NULL,
    PRIMARY KEY (run_id, position)
) STRICT;

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

CREATE UNIQUE INDEX idx_workflow_steps_record_id ON workflow_steps (run_id, record_id) WHERE record_id IS NOT NULL;

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

CREATE TABLE workflow_traces (
    run_id TEXT NOT NULL PRIMARY KEY,
    document TEXT NOT NULL
) STRICT;

-- What else was given to save_run_start and save_run_end, by key; a key is a JSON text.
CREATE TABLE workflow_details (
    run_id TEXT NOT NULL,
    key TEXT NOT NULL,
    document TEXT NOT NULL,
    PRIMARY KEY (run_id, key)
) STRICT;

CREATE TABLE workflow_evaluations (
    run_id TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    score REAL NOT NULL,
    step_name TEXT,
    created_at TEXT NOT NULL,
    document TEXT NOT NULL,
    PRIMARY KEY (run_id, sequence)
) STRICT;

CREATE INDEX idx_workflow_evaluations_created_at ON workflow_evaluations (created_at, run_id, sequence);

CREATE TABLE flujo_system_state (
    key TEXT NOT NULL PRIMARY KEY,
    document TEXT NOT NULL
) STRICT;
