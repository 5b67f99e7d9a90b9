"""Commands about jobs, runs and their results."""
