"""Configuration of a job: what a client may ask for."""
