-- The terms of each run's metadata (flujo_core.containment), newest first within a term: what a GIN index is elsewhere.

CREATE TABLE workflow_metadata_terms (
    term INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    run_id TEXT NOT NULL,
    PRIMARY KEY (term, created_at, run_id)
) STRICT, WITHOUT ROWID;
