"""Parts of the views of one job and one run: their curves, results, figures, runs, events and actions."""
