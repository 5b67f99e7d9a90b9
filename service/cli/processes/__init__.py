"""Processes of the command line: the service, its supervisor, the demo, trackers; their standard streams."""
