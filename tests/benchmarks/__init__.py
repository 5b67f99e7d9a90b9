"""Programs that print ratios of times measured side by side: ``python -m tests.benchmarks.NAME``. They test nothing."""
