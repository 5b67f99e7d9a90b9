"""A CUDA device without a GPU, for tests: torch's own CUDA code runs on it.

Two libraries, built from ``csrc`` (``build``), stand in for the CUDA runtime, cuBLAS, cuDNN and the driver of a process
that is started with them (``processes``). Memory, copies, streams, events, stream capture and graphs are real; kernels
are counted by name and do nothing. So shapes, dtypes, devices, launches, copies and synchronisations are what they are
on a GPU, and values are rubbish: ``csrc/memory.c`` says what is read in place of what was never computed.

Not covered: values, time, ONNX Runtime's CUDA session (it does not open), NCCL, memory shared among processes.
"""
