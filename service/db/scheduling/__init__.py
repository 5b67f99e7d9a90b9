"""Scheduling: control of jobs, backoff, setting aside, states of runs."""
