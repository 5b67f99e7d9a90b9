"""The teacher: an ONNX classifier behind ONNX Runtime, from uint8 pictures to float32 logits.

A teacher's numbers depend on its file, its preprocessing and the picture, not on the batch it came in or the machine:
whatever makes them do so is refused (``contract_check``) or switched off (``onnx_session``). What it does not do: draw
views, write caches, train.

Where it runs is decided once, when it is made, and the reason kept as text: CUDA if it was asked for or nothing was,
and a device and a working CUDA provider are there; else the CPU. Asking for ``cuda`` and not getting it is an error,
for ONNX Runtime itself would fall back without a word.

Legend: B pictures of a batch, H x W pixels, C channels; N classes in ``z_BN``.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers import contract
from workers.config import Preprocessing
from workers.contract import ContractReport, OutputKind
from workers.datasets import Dataset
from workers.errors import InvalidJob, InvalidTeacher
from workers.onnx_check import TeacherGraph, check_onnx, check_picture
from workers.onnx_session import CUDA, Session, has_cuda, load_cuda
from workers.views import resize

__all__ = ["ContractReport", "Device", "Teacher", "preprocess"]

Device = Literal["auto", "cpu", "cuda"]
Images = NDArray[np.uint8] | Tensor

# A probability that was rounded to 0 has no logarithm; the smallest normal float32 has -87.3.
LOG_FLOOR = float(np.finfo(np.float32).tiny)


class Teacher:
    """An ONNX classifier, ready to run.

    Args:
        path: the ONNX file; checked by ``onnx_check`` again, for it may not have come through the service.
        preprocessing: how a picture becomes its input.
        output: name of the output that holds the logits; None takes the only rank-2 one.
        threads: of one inference on the CPU; None takes one per core.
        device: ``auto`` is CUDA where it works.
        output_kind: what ``contract_check`` found out about the output, for later sessions of the same teacher.

    Attributes:
        graph: what the file declares.
        provider: ONNX Runtime's name of what it runs on, e.g. ``CPUExecutionProvider``.
        provider_reason: why that one, as a sentence's part.
        output_name: of the output that is taken.
        batch: the number of pictures per call if the graph fixes it, else None. Any number can be given all the same.
        classes: the number of classes if the graph declares it, else None.

    Raises:
        InvalidTeacher: the file, or the preprocessing with this file, cannot be used.
        InvalidJob: ``device`` is ``cuda`` and there is none.
    """

    def __init__(
        self,
        path: Path,
        preprocessing: Preprocessing,
        output: str | None = None,
        *,
        threads: int | None = None,
        device: Device = "auto",
        output_kind: OutputKind = "logits",
    ) -> None:
        self.graph = check_onnx(path, output)
        check_picture(
            self.graph,
            channels=preprocessing.channel_count,
            size=preprocessing.size,
            layout=preprocessing.layout,
        )
        self.preprocessing = preprocessing
        self.output_kind: OutputKind = output_kind
        self.output_name = self.graph.output
        self.batch = self.graph.batch
        self.classes = self.graph.classes
        self._dtype = np.dtype(self.graph.inputs[0].dtype)
        self._session, self.provider_reason = _open(path, self.graph, threads, device)
        self.provider = self._session.provider

    def preprocess(self, images_BHWC: Images) -> NDArray[np.floating]:
        """The network's input for uint8 pictures [B, H, W, C]: contiguous, in the graph's dtype and layout.

        Raises:
            InvalidTeacher: the pictures do not have the size that the graph wants.
        """
        return self._preprocess(images_BHWC, self.preprocessing)

    def _preprocess(self, images_BHWC: Images, preprocessing: Preprocessing) -> NDArray[np.floating]:
        input_ = preprocess(images_BHWC, preprocessing)
        height, width = input_.shape[2:] if preprocessing.layout == "nchw" else input_.shape[1:3]
        _, *wanted = self.graph.picture(preprocessing.layout)
        if any(size not in (None, have) for size, have in zip(wanted, (height, width), strict=True)):
            raise InvalidTeacher(
                f"the pictures are {height}x{width} pixels (height x width), the teacher wants "
                f"{'x'.join('?' if size is None else str(size) for size in wanted)}: set `size` in its preprocessing"
            )
        return input_.astype(self._dtype, copy=False)

    def run(self, input_: NDArray[np.floating]) -> NDArray[np.float32]:
        """Logits [B, N] of what ``preprocess`` returned; the log is taken if the graph ends in a softmax.

        Raises:
            InvalidTeacher: the graph cannot compute them.
        """
        return self._logits(self._run(input_))

    def logits(self, images_BHWC: Images) -> NDArray[np.float32]:
        """Logits [B, N] of uint8 pictures [B, H, W, C]: ``preprocess`` and ``run``."""
        return self.run(self.preprocess(images_BHWC))

    def outputs(
        self, images_BHWC: Images, preprocessing: Preprocessing | None = None, timeout_s: float | None = None
    ) -> NDArray[np.float32]:
        """The graph's own output [B, N], no log taken; with another preprocessing, to compare.

        Raises:
            InvalidTeacher: the graph cannot compute it, or not within ``timeout_s`` seconds.
        """
        return self._run(self._preprocess(images_BHWC, preprocessing or self.preprocessing), timeout_s)

    def contract_check(self, dataset: Dataset, rows: int = 512) -> ContractReport:
        """Try the teacher on ``rows`` labelled pictures; sets ``output_kind``. See ``workers.contract``.

        Raises:
            InvalidTeacher, ContractViolation, NotFinite: teacher and data set do not fit; nothing long was begun.
        """
        report = contract.check(self, dataset, rows)
        self.output_kind = report.output_kind
        self.classes = report.classes
        return report

    def _logits(self, output_BN: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.output_kind == "logits":
            return output_BN
        return np.log(np.maximum(output_BN, LOG_FLOOR))

    def _run(self, input_: NDArray[np.floating], timeout_s: float | None = None) -> NDArray[np.float32]:
        if self.batch is None:
            return self._session.run(input_, timeout_s)
        parts = []
        for start in range(0, len(input_), self.batch):
            part = input_[start : start + self.batch]
            padded = np.concatenate([part, np.repeat(part[-1:], self.batch - len(part), axis=0)])
            parts.append(self._session.run(padded, timeout_s)[: len(part)])
        return np.concatenate(parts)


# ---------------------------------------------------------------------------------------------------- preprocessing


def preprocess(images_BHWC: Images, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Resize, order channels, ``(x * scale - mean) / std``, lay out: uint8 [B, H, W, C] -> contiguous float32.

    Float32 throughout, one rounding per operation, so it equals the formula in NumPy bit for bit. Grey from colour
    is the luma of ITU-R BT.601 in the integer form that Pillow uses.

    Raises:
        InvalidTeacher: pictures with neither 1 nor 3 channels.
    """
    images = torch.as_tensor(images_BHWC)
    if preprocessing.size is not None:
        images = resize(images, *preprocessing.size)
    images = _ordered_channels(images, preprocessing.channels)
    per_channel = (1, -1, 1, 1) if preprocessing.layout == "nchw" else (1, 1, 1, -1)
    mean = torch.tensor(preprocessing.mean, dtype=torch.float32).view(per_channel)
    std = torch.tensor(preprocessing.std, dtype=torch.float32).view(per_channel)
    laid_out = images.permute(0, 3, 1, 2) if preprocessing.layout == "nchw" else images
    x = laid_out.to(torch.float32, memory_format=torch.contiguous_format)
    return x.mul_(preprocessing.scale).sub_(mean).div_(std).numpy()


def _ordered_channels(images_BHWC: Tensor, channels: str) -> Tensor:
    have = images_BHWC.shape[-1]
    if have not in (1, 3):
        raise InvalidTeacher(f"the pictures have {have} channels; a teacher takes grey (1) or colour (3) ones")
    if channels == "gray":
        return images_BHWC if have == 1 else _luma(images_BHWC)
    if have == 1:
        return images_BHWC.expand(-1, -1, -1, 3)
    return images_BHWC.flip(-1) if channels == "bgr" else images_BHWC


def _luma(rgb_BHWC: Tensor) -> Tensor:
    # 0.299 R + 0.587 G + 0.114 B in units of 2**-16, as Pillow's L conversion.
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32)
    summed = (rgb_BHWC.to(torch.int32) * weights).sum(-1, keepdim=True)
    return ((summed + 0x8000) >> 16).to(torch.uint8)


# ---------------------------------------------------------------------------------------------------------- session


def _open(path: Path, graph: TeacherGraph, threads: int | None, device: Device) -> tuple[Session, str]:
    """A session on the best device allowed, and why it is that one."""
    names = (graph.inputs[0].name, graph.output)
    absent = _why_no_cuda() if device != "cpu" else "asked for"
    if absent is None:
        session, absent = _open_cuda(path, names, threads)
        if session is not None:
            return session, f"{torch.cuda.get_device_name()} is there"
    if device == "cuda":
        raise InvalidJob(f"the teacher was to run on device 'cuda', but {absent}; use 'auto' or 'cpu'")
    return Session(path, *names, threads=threads), absent


def _why_no_cuda() -> str | None:
    if not has_cuda():
        return "the installed ONNX Runtime has no CUDA provider (package onnxruntime-gpu)"
    if not torch.cuda.is_available():
        return "no CUDA device is visible"
    return None


def _open_cuda(path: Path, names: tuple[str, str], threads: int | None) -> tuple[Session | None, str]:
    """(session, "") on CUDA, or (None, why not)."""
    hint = load_cuda()
    try:
        session = Session(path, *names, threads=threads, providers=CUDA)
    except InvalidTeacher as error:
        return None, f"CUDA failed: {error} {hint}".rstrip()
    if session.provider == "CUDAExecutionProvider":
        return session, ""
    return None, f"ONNX Runtime could not load its CUDA provider, its log says why. {hint}".rstrip()
