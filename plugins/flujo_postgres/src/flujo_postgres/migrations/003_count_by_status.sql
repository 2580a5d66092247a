-- So that counting the runs of a status reads nothing but the index. Reads go on while the new one is built.

CREATE INDEX idx_workflow_state_status_listed ON workflow_state (status, created_at, run_id, listed);
DROP INDEX idx_workflow_state_status;
ALTER INDEX idx_workflow_state_status_listed RENAME TO idx_workflow_state_status;
