"""Experiment trackers (MLflow, Weights & Biases, Trackio): export of jobs, once or as they go.

Clients of the HTTP API, in processes of their own: no tracker is imported by the API, the engine or a worker, so one
that hangs, fails or is killed stops no job.
"""
