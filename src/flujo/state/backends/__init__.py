"""Which backend classes are there? One module per database, so that importing one never imports another's driver."""
