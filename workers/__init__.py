"""Computation: datasets, views, teacher logits, temperature methods, students, training.

Light modules, loadable by the API process (which has no torch), are listed in tests/repository/test_architecture.py
(``LIGHT``). All others may import torch.
"""
