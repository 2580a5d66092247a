-- So that counting the runs of a status reads nothing but the index.

DROP INDEX idx_workflow_state_status;
CREATE INDEX idx_workflow_state_status ON workflow_state (status, created_at, run_id) WHERE listed;
