"""The teacher: an ONNX classifier behind ONNX Runtime, from uint8 pictures to float32 logits.

A teacher's numbers depend on its file, its preprocessing and the picture, not on the batch it came in or the machine:
whatever makes them do so is refused (``run_preflight``) or switched off (``onnx.session``). What it does not do: draw
views, write caches, train.

Where it runs is decided once, when it is made, and the reason kept as text. ``cuda`` is a promise: CUDA is used or the
teacher cannot be made, for ONNX Runtime itself would fall back without a word. ``auto`` takes CUDA where it works. A
session on CUDA first shows that it computes what the CPU does. The teacher of a job runs in a confined process
(``confined_session``); one that this program has exported itself may run in this one.

Legend: B pictures of a batch, H x W pixels, C channels; N classes in ``z_BN``.
"""

import functools
import os
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from pydantic import JsonValue
from torch import Tensor

from workers.augmentation.apply import resize
from workers.config.teacher import Preprocessing
from workers.data.prepared import Dataset
from workers.devices import cuda_failure
from workers.errors import DeviceUnavailable, InvalidTeacher, OutOfMemory
from workers.onnx.check import TeacherGraph, check_onnx, check_picture
from workers.onnx.confined_session import AnySession, ConfinedSession, limits_of
from workers.onnx.gpu_confinement import confinement_failure
from workers.onnx.session import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    VERSION,
    OnnxSession,
    cuda_providers,
    has_cuda,
    open_on_cuda,
)
from workers.onnx.shared_arrays import SharedArrays
from workers.precision import tf32_in_force
from workers.teacher import preflight
from workers.teacher.preflight import OutputKind, PreflightReport

__all__ = ["Device", "PreflightReport", "Teacher", "preprocess"]

Device = Literal["auto", "cpu", "cuda"]
Images = NDArray[np.uint8] | Tensor

# A probability that was rounded to 0 has no logarithm; the smallest normal float32 has -87.3.
LOG_FLOOR = float(np.finfo(np.float32).tiny)

COMPARED_ROWS = 8
# Largest difference of an output on CUDA and on the CPU, relative to the largest output, in half precision (True) and
# in float32. Other orders of addition made 2e-6 (ResNet-18) to 4e-4 (ResNet-152) in torchvision's networks with random
# weights, where rounding grows most, and rounding to TF32 made 2e-3 to 2e-1: a float32 difference beyond the first
# bound is told as a warning, for ONNX Runtime may have taken TF32 all the same. Nothing but a mistake explains what is
# beyond the second.
EXPLAINED = {False: 1e-3, True: 2e-2}
ALLOWED = {False: 1e-2, True: 5e-2}


class Teacher:
    """An ONNX classifier, ready to run.

    Args:
        path: the ONNX file; checked by ``onnx.check`` again, for it may not have come through the service.
        preprocessing: how a picture becomes its input.
        output: name of the output that holds the logits; None takes the only rank-2 one.
        threads: of one inference on the CPU; None takes one per core.
        device: ``auto`` is CUDA where it works, ``cuda`` is CUDA or an error.
        memory_fraction: of a GPU's memory that the session may take.
        output_kind: what ``run_preflight`` found out about the output, for later sessions of the same teacher.
        dataset: some of its pictures are what CUDA and the CPU are compared on; None takes noise.
        on_forward: told how many pictures have gone through the network, after each call; what it raises ends the call.
        sessions: how many teachers are at work beside each other on this machine, this one included: it runs in a
            confined process, with its part of the memory. None runs it in this process, without limits: for files that
            no stranger made.
        confine_on_gpu: False leaves such a process on a GPU without a filter of system calls and file-system rules.

    Attributes:
        graph: what the file declares.
        provider: ONNX Runtime's name of what it runs on, e.g. ``CPUExecutionProvider``.
        device: the name of that device, e.g. ``NVIDIA H200`` or ``x86_64``.
        warnings: sentences for a person about how it runs there.
        output_name: of the output that is taken.
        batch: the number of pictures per call if the graph fixes it, else None. Any number can be given all the same.
        rows_max: the number of pictures per call that has to do since more did not fit into the memory; None if none
            did not.
        classes: the number of classes if the graph declares it, else None.

    Raises:
        InvalidTeacher: the file, or the preprocessing with this file, cannot be used.
        DeviceUnavailable: ``device`` is ``cuda`` and CUDA does not work, or the teacher's outputs are others there.
        OutOfMemory: its weights do not fit.
    """

    def __init__(
        self,
        path: Path,
        preprocessing: Preprocessing,
        output: str | None = None,
        *,
        threads: int | None = None,
        device: Device = "auto",
        memory_fraction: float = 1.0,
        output_kind: OutputKind = "logits",
        dataset: Dataset | None = None,
        on_forward: Callable[[int], None] | None = None,
        sessions: int | None = None,
        confine_on_gpu: bool = True,
    ) -> None:
        self._on_forward = on_forward
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
        self.rows_max: int | None = None
        self.classes = self.graph.classes
        self._dtype = np.dtype(self.graph.inputs[0].dtype)
        kind: Callable[..., AnySession] = OnnxSession
        if sessions is not None:
            limits = limits_of(path, threads or os.cpu_count() or 1, sessions)
            kind = functools.partial(ConfinedSession, limits=limits)
        on_cpu = functools.partial(kind, path, self.graph.inputs[0].name, self.graph.output, threads=threads)
        self._open, self._session, self._reason = _open(
            on_cpu, device, memory_fraction, self.graph, confine=None if sessions is None else confine_on_gpu
        )
        self._shared = _shared_with(self._session)
        self.provider = self._session.provider
        self.device = torch.cuda.get_device_name(0) if self._is_on_cuda else platform.machine()
        self._memory_limit = _memory_limit(memory_fraction) if self._is_on_cuda else "the memory of this machine"
        self.warnings: tuple[str, ...] = ()
        self._tell_of_confinement()
        if self._is_on_cuda:
            self._tell_of_cpu_operators()
            self._compare(on_cpu, dataset)

    @property
    def provider_reason(self) -> str:
        """Why it runs on that provider and how, as a sentence's part."""
        if self.rows_max is None:
            return self._reason
        return f"{self._reason}; {self.rows_max} pictures at once, since more do not fit into its memory"

    @functools.cached_property
    def provenance(self) -> dict[str, JsonValue]:
        """What the last bits of its logits depend on beside the file, the preprocessing and the pictures."""
        return {
            "retort": version("retort"),
            "provider": self.provider,
            "device": self.device,
            "onnxruntime": VERSION,
            "tf32": tf32_in_force(
                self.graph.is_half, torch.device("cuda", 0) if self._is_on_cuda else torch.device("cpu")
            ),
        }

    def preprocess(self, images_BHWC: Images) -> NDArray[np.floating]:
        """The network's input for uint8 pictures [B, H, W, C]: contiguous, in the graph's dtype and layout.

        Raises:
            InvalidTeacher: the pictures do not have the size that the graph wants.
        """
        return self._preprocess(images_BHWC, self.preprocessing)

    def _preprocess(self, images_BHWC: Images, preprocessing: Preprocessing) -> NDArray[np.floating]:
        input_ = preprocess(images_BHWC, preprocessing, self._empty)
        height, width = input_.shape[2:] if preprocessing.layout == "nchw" else input_.shape[1:3]
        _, *wanted = self.graph.picture(preprocessing.layout)
        if any(size not in (None, have) for size, have in zip(wanted, (height, width), strict=True)):
            raise InvalidTeacher(
                f"the pictures are {height}x{width} pixels (height x width), the teacher wants "
                f"{'x'.join('?' if size is None else str(size) for size in wanted)}: set `size` in its preprocessing"
            )
        if input_.dtype == self._dtype:
            return input_
        converted = self._empty(input_.shape, self._dtype)
        np.copyto(converted, input_, casting="same_kind")
        return converted

    def _empty(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[np.floating]:
        """An array for an input: where the session's process sees it, if it has one of its own."""
        # Threads that load ask at any moment, also while one session follows another.
        return np.empty(shape, dtype) if self._shared is None else self._shared.empty(shape, dtype)

    def run(self, input_: NDArray[np.floating], call_rows: int | None = None) -> NDArray[np.float32]:
        """Logits [B, N] of what ``preprocess`` returned; the log is taken if the graph ends in a softmax.

        Args:
            call_rows: pictures of every call on CUDA, as every other number costs new plans for all convolutions: of
                fewer pictures the last is repeated. None takes them as they come, and so does the CPU.

        Raises:
            InvalidTeacher: the graph cannot compute them.
            OutOfMemory: not even for a single picture, or for as many as the graph fixes, is there enough memory.
            DeviceUnavailable: the GPU fails.
        """
        return self._logits(self._run(input_, call_rows=call_rows))

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

    def run_preflight(self, dataset: Dataset, rows: int = preflight.ROWS, *, accept: bool = False) -> PreflightReport:
        """Try the teacher on ``rows`` labelled pictures or more; sets ``output_kind``. See
        ``workers.teacher.preflight``.

        Args:
            accept: whether refusals about accuracy, class order, preprocessing and kind of output are left to the
                caller, in the report.

        Raises:
            InvalidTeacher, ContractViolation, NotFinite: teacher and data set do not fit; nothing long was begun.
        """
        report = preflight.check(self, dataset, rows)
        report.enforce(accept)
        self.output_kind = report.output_kind
        self.classes = report.classes
        return report

    def _logits(self, output_BN: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.output_kind == "logits":
            return output_BN
        return np.log(np.maximum(output_BN, LOG_FLOOR))

    def _run(
        self, input_: NDArray[np.floating], timeout_s: float | None = None, call_rows: int | None = None
    ) -> NDArray[np.float32]:
        wanted = self.batch or (call_rows if self._is_on_cuda else None)
        rows = wanted or max(1, len(input_))
        if self.rows_max is not None:
            rows = min(rows, self.rows_max)
        if self.batch is None and isinstance(self._session, ConfinedSession):
            rows = min(rows, self._session.rows_in_time(input_))
        while True:
            try:
                output_BN = _run_in_calls(self._session, input_, rows, wanted is not None, timeout_s)
                break
            except OutOfMemory as error:
                if rows == 1 or self.batch is not None:
                    fixed = "the graph fixes that number" if self.batch is not None else "fewer are not possible"
                    raise OutOfMemory(
                        f"{error}. {fixed.capitalize()}, and the limit is {self._memory_limit}"
                    ) from error
            rows = self.rows_max = rows // 2
            # A new session: the old one's arena keeps what it has taken, in pieces that fit the larger batch.
            del self._session
            self._session = self._open()
            self._shared = _shared_with(self._session)
        if self._on_forward is not None:
            self._on_forward(len(input_))
        return output_BN

    def _tell_of_confinement(self) -> None:
        missing = self._session.missing if isinstance(self._session, ConfinedSession) else ()
        if missing:
            self.warnings += (
                f"the teacher's process runs without {' and without '.join(missing)}; its limits of time and memory "
                "hold: use teachers that you trust on such a machine",
            )

    @property
    def _is_on_cuda(self) -> bool:
        return self.provider == CUDA_PROVIDER

    def _tell_of_cpu_operators(self) -> None:
        operators = self._session.cpu_operators
        if operators:
            listed = ", ".join(f"{name} ({count})" for name, count in operators.most_common(8))
            self.warnings += (
                f"{operators.total()} operators of the teacher run on the CPU, as ONNX Runtime has no CUDA kernel for "
                f"them: {listed}. Export it with others to have all of it on {self.device}",
            )

    def _compare(self, open_on_cpu: Callable[[], AnySession], dataset: Dataset | None) -> None:
        """Run some pictures on CUDA and on the CPU, and say how far apart they are. Raises DeviceUnavailable."""
        images = self._pictures(dataset)
        if images is None:
            self._reason += "; not compared with the CPU, as nothing tells how large pictures are"
            return
        input_ = self.preprocess(images)
        here_BN = self._run(input_)
        there_BN = _run_in_calls(open_on_cpu(), input_, self.batch or len(input_), self.batch is not None)
        difference, largest = float(np.abs(here_BN - there_BN).max()), float(np.abs(there_BN).max())
        share = difference / max(largest, LOG_FLOOR)
        found = f"{difference:.2g}, {share:.2g} of the largest"
        precision = "half precision" if self.graph.is_half else "float32"
        # NaN is beyond every bound; the CPU's own, or an infinite one, is for the contract check to tell.
        if np.isfinite(largest) and not share <= ALLOWED[self.graph.is_half]:
            raise DeviceUnavailable(
                f"the teacher's outputs for {len(images)} pictures on {self.device} ({self.provider}, ONNX Runtime "
                f"{VERSION}) differ from those of {CPU_PROVIDER} by {found}; {ALLOWED[self.graph.is_half]:g} of it is "
                f"allowed in {precision}. The GPU or its libraries compute something else: mend them, or choose the "
                "CPU with RETORT_GPUS=0"
            )
        self._reason += f"; its outputs for {len(images)} pictures differ from the CPU's by {found}"
        if not share <= EXPLAINED[self.graph.is_half]:
            tf32 = "" if self.graph.is_half else ": ONNX Runtime may use TF32 where cuDNN has nothing else"
            self.warnings += (
                f"the teacher's outputs on {self.device} differ from the CPU's by {found}, which is more than rounding "
                f"in {precision} explains{tf32}",
            )

    def _pictures(self, dataset: Dataset | None) -> Images | None:
        """Uint8 [B, H, W, C], spread over the data set, or noise as large as the graph or the preprocessing says."""
        if dataset is not None:
            return dataset.take(
                preflight.spread(dataset.samples, preflight.batch_rows(COMPARED_ROWS, self.preprocessing, dataset))
            )
        _, *declared = self.graph.picture(self.preprocessing.layout)
        given = self.preprocessing.size or (None, None)
        height, width = (size or fixed for size, fixed in zip(given, declared, strict=True))
        if height is None or width is None:
            return None
        rows = max(1, min(COMPARED_ROWS, preflight.BATCH_PIXELS // (height * width)))
        shape = (rows, height, width, self.preprocessing.channel_count)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _run_in_calls(
    session: AnySession, input_: NDArray[np.floating], rows: int, is_filled: bool, timeout_s: float | None = None
) -> NDArray[np.float32]:
    """The output [B, N], from calls of ``rows`` pictures; in a filled last one the last picture is repeated."""
    parts = []
    for start in range(0, max(1, len(input_)), rows):
        part = input_[start : start + rows]
        missing = rows - len(part) if is_filled else 0
        filled = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
        parts.append(session.run(filled, timeout_s)[: len(part)])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


# ---------------------------------------------------------------------------------------------------- preprocessing


def _shared_with(session: AnySession) -> SharedArrays | None:
    """The memory that a session's process sees; None of one in this process."""
    return session.inputs if isinstance(session, ConfinedSession) else None


def preprocess(
    images_BHWC: Images, preprocessing: Preprocessing, empty: Callable[..., NDArray[np.floating]] = np.empty
) -> NDArray[np.floating]:
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
    # NumPy asks for huge pages, torch does not: small ones took half of the processor time of a batch at 224 x 224.
    input_ = empty(laid_out.shape, dtype=np.float32)
    torch.from_numpy(input_).copy_(laid_out).mul_(preprocessing.scale).sub_(mean).div_(std)
    return input_


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


def _open(
    on_cpu: Callable[..., AnySession],
    device: Device,
    memory_fraction: float,
    graph: TeacherGraph,
    *,
    confine: bool | None,
) -> tuple[Callable[[], AnySession], AnySession, str]:
    """How to open a session on the best device allowed, such a session, and why it is on that device.

    Args:
        confine: whether the process that a session on CUDA has of its own is confined; None is this process.
    """
    absent = "asked for"
    if device == "auto" and not torch.cuda.is_available():
        absent = "no CUDA device is visible"
    elif device != "cpu":
        try:
            on_cuda = _on_cuda(on_cpu, memory_fraction, graph, confine=confine)
            return on_cuda, on_cuda(), f"{torch.cuda.get_device_name(0)} is there"
        except OutOfMemory as error:
            if device == "cuda":
                raise
            absent = str(error)
        except DeviceUnavailable as error:
            if device == "cuda":
                raise DeviceUnavailable(
                    f"the teacher was to run on a GPU, but {error}. Mend that (`retort doctor` says what is missing), "
                    "or choose the CPU for the whole service: RETORT_GPUS=0"
                ) from error
            absent = str(error)
    return on_cpu, on_cpu(), absent


def _memory_limit(memory_fraction: float) -> str:
    """What a session on CUDA may take, and how to have it take more."""
    memory_bytes = memory_fraction * torch.cuda.get_device_properties(0).total_memory
    of_all = f"{memory_bytes / 2**30:.2f} GiB, {memory_fraction:g} of the memory of {torch.cuda.get_device_name(0)}"
    more = "; a larger RETORT_GPU_SHARE gives it more" if memory_fraction < 1.0 else ""
    return f"{of_all}{more}"


def _on_cuda(
    on_cpu: Callable[..., AnySession], memory_fraction: float, graph: TeacherGraph, *, confine: bool | None
) -> Callable[[], AnySession]:
    """How to open a session on CUDA. Raises DeviceUnavailable, saying why there is none."""
    why_not = cuda_failure() if has_cuda() else "the installed ONNX Runtime has no CUDA provider (onnxruntime-gpu)"
    if why_not is not None:
        raise DeviceUnavailable(why_not)
    memory_bytes = int(memory_fraction * torch.cuda.get_device_properties(0).total_memory)
    providers = cuda_providers(memory_bytes, is_half=graph.is_half)

    def open_session() -> AnySession:
        try:
            if confine is None:
                return open_on_cuda(functools.partial(on_cpu, providers=providers))
            # Whether that works is found out with a file of our own: a stranger's could fail on purpose.
            return on_cpu(providers=providers, is_confined=confine and confinement_failure() is None)
        except OutOfMemory as error:
            raise OutOfMemory(f"{error}. The limit is {_memory_limit(memory_fraction)}") from error
        except InvalidTeacher as error:
            raise DeviceUnavailable(str(error)) from error

    return open_session
