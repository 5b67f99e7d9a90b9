"""The teacher's half of a job: preflight, inference, caches."""
