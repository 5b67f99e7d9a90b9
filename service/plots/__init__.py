"""Figures of jobs and runs as files, drawn by matplotlib (extra ``plots``) from the documents of the API.

A client, as the command line is: nothing here is imported by the API or the engine.
"""

import matplotlib

# Files are all that is drawn; any other backend looks for a screen.
matplotlib.use("agg")
