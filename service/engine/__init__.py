"""The engine process: takes jobs from the database and has them done on the cluster."""
