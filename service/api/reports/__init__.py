"""Reports: statistics over seeds, groups of runs, per-sample tests, and tables as CSV, Markdown and LaTeX."""
