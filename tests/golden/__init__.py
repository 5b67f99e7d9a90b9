"""Numbers made by the authors' own code, and the check that this code gives the same.

``golden.json`` and ``golden.npz`` hold, for six inputs (two seeds, 10, 100 and 1000 classes), the loss, its terms and
its gradient as the published repositories compute them in float64. ``python -m tests.golden DIR`` checks every case
of such a pair in DIR. The recipes say which method of this code each id is.
"""
