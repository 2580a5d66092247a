-- The tables. Times are ISO 8601 text in UTC of fixed width, so that they sort as text.
--
-- DuckDB looks through a million values of a column in a few milliseconds, and to change an indexed value is to delete
-- the row and insert it anew. So there are indexes only for what is looked up for each write and for filters.

-- One row a run. "run" is what the library reads; the columns before it are made from it, for filters and for SQL.
CREATE TABLE workflow_state (
    run_id VARCHAR NOT NULL PRIMARY KEY,
    operation_id BLOB NOT NULL,
    listed BOOLEAN NOT NULL,
    pipeline_id VARCHAR NOT NULL,
    pipeline_name VARCHAR NOT NULL,
    pipeline_version VARCHAR NOT NULL,
    status VARCHAR NOT NULL,
    created_at VARCHAR NOT NULL,
    updated_at VARCHAR NOT NULL,
    end_time VARCHAR,
    current_step_index BIGINT NOT NULL,
    total_steps BIGINT NOT NULL,
    error_message VARCHAR,
    execution_time_ms DOUBLE,
    memory_usage_mb DOUBLE,
    total_cost DOUBLE,
    is_background_task BOOLEAN NOT NULL,
    parent_run_id VARCHAR,
    task_id VARCHAR,
    background_error VARCHAR,
    revision BIGINT NOT NULL,
    run VARCHAR NOT NULL,
    metadata VARCHAR NOT NULL,
    snapshot VARCHAR
);

-- The entries of step_history, a row each, so that a save writes only those that changed.
CREATE TABLE workflow_history (
    run_id VARCHAR NOT NULL,
    position BIGINT NOT NULL,
    digest BLOB NOT NULL,
    entry VARCHAR NOT NULL
);

CREATE TABLE workflow_steps (
    run_id VARCHAR NOT NULL,
    sequence BIGINT NOT NULL,
    record_id VARCHAR,
    step_index BIGINT NOT NULL,
    step_name VARCHAR NOT NULL,
    status VARCHAR NOT NULL,
    cost_usd DOUBLE,
    created_at VARCHAR NOT NULL,
    document VARCHAR NOT NULL
);

CREATE TABLE workflow_spans (
    run_id VARCHAR NOT NULL,
    span_id VARCHAR NOT NULL,
    sequence BIGINT NOT NULL,
    from_trace BOOLEAN NOT NULL,
    name VARCHAR NOT NULL,
    status VARCHAR NOT NULL,
    start_time DOUBLE NOT NULL,
    end_time DOUBLE,
    document VARCHAR NOT NULL
);

CREATE TABLE workflow_traces (
    run_id VARCHAR NOT NULL,
    document VARCHAR NOT NULL
);

-- What else was given to save_run_start and save_run_end, by key; a key is a JSON text.
CREATE TABLE workflow_details (
    run_id VARCHAR NOT NULL,
    key VARCHAR NOT NULL,
    document VARCHAR NOT NULL
);

CREATE TABLE workflow_evaluations (
    run_id VARCHAR NOT NULL,
    sequence BIGINT NOT NULL,
    score DOUBLE NOT NULL,
    step_name VARCHAR,
    created_at VARCHAR NOT NULL,
    document VARCHAR NOT NULL
);

CREATE TABLE flujo_system_state (
    key VARCHAR NOT NULL,
    document VARCHAR NOT NULL
);

-- The terms of each run's metadata (flujo_core.containment): what a GIN index is elsewhere.

CREATE TABLE workflow_metadata_terms (
    term BIGINT NOT NULL,
    run_id VARCHAR NOT NULL
);

CREATE INDEX idx_workflow_metadata_terms_term ON workflow_metadata_terms (term);
CREATE INDEX idx_workflow_metadata_terms_run_id ON workflow_metadata_terms (run_id);
