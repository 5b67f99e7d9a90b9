"""The student's half of a job: batches, loop, evaluation, artifacts."""
