"""Ray, here only: actors, inference pool, tasks, and the head."""
