"""What is computed: data sets, views, teacher logits, temperature methods, students, training.

Light modules, loadable by the API process (which has no torch): ``errors``, ``events``, ``config``,
``methods``, ``discovery``, ``onnx.inspection``, ``smoke_test`` and ``students.catalog``. All others may import torch.
"""
