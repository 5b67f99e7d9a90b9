"""Metrics of an epoch: sums and temperatures on the device, reports of steps, early stopping."""
