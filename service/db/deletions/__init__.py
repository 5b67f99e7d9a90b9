"""Deletions: of jobs, runs and what they are made of, their preview, tombstones, retention, disk usage."""
