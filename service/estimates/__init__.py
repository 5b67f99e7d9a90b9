"""Estimates: what a job costs before it is posted, and when jobs and runs are expected to end.

They are made from numbers that are in the database: what earlier runs and inferences on this service have taken.
``history`` reads those, ``rates`` chooses among them, ``workload`` makes a job's seconds of them, ``schedule`` plays
through who gets which slot when. What was never measured has no number, and a reason instead.
"""
