"""Scheduling: the lease of the engine, control of jobs, backoff, setting aside, states of runs."""
