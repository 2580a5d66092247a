-- What metadata filters (@>) look in. jsonb_path_ops hashes each path with its value: smaller than the default, and a
-- filter on a common value under a rare path stays cheap. A short pending list: reads go through all of it.

CREATE INDEX IF NOT EXISTS idx_workflow_state_metadata_gin ON workflow_state USING GIN (metadata jsonb_path_ops)
    WITH (gin_pending_list_limit = 256);
