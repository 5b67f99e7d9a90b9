"""What is computed: data sets, views, the teacher's logits, temperature methods, students, training.

Light modules (loadable by the API process, which has no torch): ``errors``, ``events``, ``config``, ``methods``,
``sources``, ``onnx_check`` and ``students.catalog``. Everything else may import torch.
"""
