"""Operations: the data directory, its disk, readiness, backup and restore."""
