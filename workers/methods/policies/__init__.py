"""Temperature policies: one file each, with its configuration and its function; ``catalog`` has them all."""
