"""Objective of a student: the losses of the methods on tensors."""
