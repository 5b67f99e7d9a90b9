"""The teacher: an ONNX classifier behind ONNX Runtime, from uint8 pictures to float32 logits.

A teacher's numbers depend on its file, its preprocessing and the picture, not on the batch it came in or the machine:
whatever makes them do so is refused (``run_preflight``) or switched off (``sessions.session``). What it does not do:
draw views, write caches, train.

Where it runs is decided once, when it is made (``sessions``), and the reason kept as text. A session on CUDA first
shows that it computes what the CPU does (``cuda_comparison``). The teacher of a job runs in a confined process; one
that this program has exported itself may run in this one.

Legend: B pictures of a batch, H x W pixels, C channels; N classes in ``z_BN``.
"""

import functools
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from pydantic import JsonValue

from store.spec import StoredKind
from workers.augmentation.draw import ViewParameters
from workers.config.teacher import Preprocessing, TeacherReading
from workers.config.views import Augmentation
from workers.data.preparation.prepared import Dataset
from workers.errors import OutOfMemory
from workers.onnx.checks.byte_input import check_bytes
from workers.onnx.checks.check import check_onnx
from workers.onnx.checks.teacher_graph import check_picture
from workers.onnx.sessions.confined_session import AnySession
from workers.onnx.sessions.session import CUDA_PROVIDER, VERSION
from workers.precision import tf32_in_force
from workers.teacher.cuda_comparison import compare_with_cpu, pictures_to_compare
from workers.teacher.output_values import to_logits
from workers.teacher.preflight.check import check
from workers.teacher.preflight.report import PreflightReport
from workers.teacher.preflight.rows import ROWS
from workers.teacher.preprocess import Images, fit, fit_views, network_input
from workers.teacher.sessions import (
    Device,
    memory_limit,
    open_session,
    rows_in_time,
    run_in_calls,
    session_warnings,
    shared_inputs,
)


class Teacher:
    """An ONNX classifier, ready to run.

    Args:
        path: the ONNX file; checked by ``checks.check`` again, for it may not have come through the service.
        preprocessing: how a picture becomes its input.
        output: name of the output that holds the logits; None takes the only rank-2 one.
        reading: what a client has stated: values of other inputs, and for ``run_preflight`` kind and classes.
        threads: of one inference on the CPU; None takes one per core.
        device: ``auto`` is CUDA where it works, ``cuda`` is CUDA or an error.
        memory_fraction: of a GPU's memory that the session may take.
        output_kind, columns: what ``run_preflight`` found out about the output, for later sessions of the same teacher
            and data.
        dataset: some of its pictures are what CUDA and the CPU are compared on; None takes noise.
        on_forward: called after each call of the network with its number of pictures; what it raises ends the call.
        sessions: how many teachers are at work beside each other on this machine, this one included: it runs in a
            confined process, with its part of the memory. None runs it in this process, without limits: for files that
            are trusted.
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
        classes: number of columns of the output if the graph declares it, else None; after ``run_preflight`` that of
            the dataset's classes.

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
        reading: TeacherReading = TeacherReading(),  # noqa: B008  # frozen
        threads: int | None = None,
        device: Device = "auto",
        memory_fraction: float = 1.0,
        output_kind: StoredKind = "logits",
        columns: Sequence[int] | None = None,
        dataset: Dataset | None = None,
        on_forward: Callable[[int], None] | None = None,
        sessions: int | None = None,
        confine_on_gpu: bool = True,
    ) -> None:
        self._on_forward = on_forward
        self.reading = reading
        self.graph = check_onnx(path, output, reading.input_values)
        check_bytes(self.graph, preprocessing)
        check_picture(
            self.graph,
            channels=preprocessing.channel_count,
            size=preprocessing.size,
            layout=preprocessing.layout,
        )
        self.preprocessing = preprocessing
        self.output_kind: StoredKind = output_kind
        self.columns = None if columns is None else tuple(columns)
        self.output_name = self.graph.output
        self.batch = self.graph.batch
        self.rows_max: int | None = None
        self.classes = self.graph.classes
        opened = open_session(
            path,
            self.graph,
            device,
            memory_fraction,
            threads=threads,
            sessions=sessions,
            confine_on_gpu=confine_on_gpu,
        )
        self._session, self._reason, self._open = opened.session, opened.reason, opened.reopen
        self._shared = shared_inputs(self._session)
        self.provider = self._session.provider
        self.device = torch.cuda.get_device_name(0) if self._is_on_cuda else platform.machine()
        self._memory_limit = memory_limit(memory_fraction) if self._is_on_cuda else "the memory of this machine"
        self.warnings = session_warnings(self._session, self.device)
        if self._is_on_cuda:
            self._compare(opened.open_on_cpu, dataset)

    @property
    def provider_reason(self) -> str:
        """Reason why it runs on that provider, and how many pictures at once if they are limited; a sentence's part."""
        if self.rows_max is None:
            return self._reason
        return f"{self._reason}; {self.rows_max} pictures at once, since more do not fit into its memory"

    @functools.cached_property
    def provenance(self) -> dict[str, JsonValue]:
        """Versions and device on which the last bits of its logits depend, beside the file and the pictures."""
        return {
            "retort": version("retort"),
            "provider": self.provider,
            "device": self.device,
            "onnxruntime": VERSION,
            "tf32": tf32_in_force(
                self.graph.is_half, torch.device("cuda", 0) if self._is_on_cuda else torch.device("cpu")
            ),
        }

    def preprocess(self, images_BHWC: Images) -> NDArray[np.number]:
        """The network's input for uint8 pictures [B, H, W, C]: contiguous, in the graph's dtype and layout.

        Raises:
            InvalidTeacher: the pictures do not have the size that the graph wants.
        """
        return self._input(fit(torch.as_tensor(images_BHWC), self.preprocessing))

    def preprocess_views(self, images_BHWC: Images, recipe: Augmentation, drawn: ViewParameters) -> NDArray[np.number]:
        """The network's input for views of uint8 pictures [B, H, W, C], see ``preprocess.fit_views``.

        Raises:
            InvalidTeacher, InvalidDataset: as ``preprocess``; views cannot be made of the pictures.
        """
        return self._input(fit_views(torch.as_tensor(images_BHWC), recipe, drawn, self.preprocessing))

    def _input(self, fitted_BHWC: torch.Tensor, preprocessing: Preprocessing | None = None) -> NDArray[np.number]:
        return network_input(fitted_BHWC, preprocessing or self.preprocessing, self.graph, self._empty)

    def _empty(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """An array for an input: where the session's process sees it, if it has one of its own."""
        # Threads that load ask at any moment, also while one session follows another.
        return np.empty(shape, dtype) if self._shared is None else self._shared.empty(shape, dtype)

    def run(self, input_: NDArray[np.number], call_rows: int | None = None) -> NDArray[np.float32]:
        """Logits [B, N] of what ``preprocess`` returned, of the dataset's classes; see ``output_values``.

        Args:
            call_rows: pictures of every call on CUDA, as every other number costs new plans for all convolutions: of
                fewer pictures the last is repeated. None takes them as they come, and so does the CPU.

        Raises:
            InvalidTeacher: the graph cannot compute them.
            OutOfMemory: not even for a single picture, or for as many as the graph fixes, is there enough memory.
            DeviceUnavailable: the GPU fails.
        """
        return to_logits(self._run(input_, call_rows=call_rows), self.output_kind, self.columns)

    def logits(self, images_BHWC: Images) -> NDArray[np.float32]:
        """Logits [B, N] of uint8 pictures [B, H, W, C]: ``preprocess`` and ``run``."""
        return self.run(self.preprocess(images_BHWC))

    def outputs(
        self, images_BHWC: Images, preprocessing: Preprocessing | None = None, timeout_s: float | None = None
    ) -> NDArray[np.float32]:
        """The graph's own output [B, N], all its columns, no log taken; with another preprocessing, to compare.

        Raises:
            InvalidTeacher: the graph cannot compute it, or not within ``timeout_s`` seconds.
        """
        fitted_BHWC = fit(torch.as_tensor(images_BHWC), preprocessing or self.preprocessing)
        return self._run(self._input(fitted_BHWC, preprocessing), timeout_s)

    def view_outputs(self, images_BHWC: Images, recipe: Augmentation, drawn: ViewParameters) -> NDArray[np.float32]:
        """The graph's own output [B, N] for views of pictures, no log taken."""
        return self._run(self.preprocess_views(images_BHWC, recipe, drawn))

    def run_preflight(self, dataset: Dataset, rows: int = ROWS, *, accept: bool = False) -> PreflightReport:
        """Run the preflight on ``rows`` labelled pictures or more; sets ``output_kind`` and ``columns``.

        Args:
            accept: whether refusals about accuracy, class order, preprocessing and kind of output are left to the
                caller, in the report.

        Raises:
            InvalidTeacher, ContractViolation, NotFinite: teacher and dataset do not fit; nothing long was begun.
        """
        report = check(self, dataset, rows)
        report.enforce(accept)
        self.output_kind, self.columns = report.output_kind, report.columns
        self.classes = report.classes
        return report

    def _run(
        self, input_: NDArray[np.number], timeout_s: float | None = None, call_rows: int | None = None
    ) -> NDArray[np.float32]:
        wanted = 1 if self.graph.runs_alone else self.batch or (call_rows if self._is_on_cuda else None)
        rows = wanted or max(1, len(input_))
        if self.rows_max is not None:
            rows = min(rows, self.rows_max)
        if self.batch is None:
            rows = rows_in_time(self._session, input_, rows)
        while True:
            try:
                output_BN = run_in_calls(self._session, input_, rows, is_filled=wanted is not None, timeout_s=timeout_s)
                break
            except OutOfMemory as error:
                if rows == 1 or self.batch is not None:
                    fixed = "the graph fixes that number" if self.batch is not None else "fewer are not possible"
                    raise OutOfMemory(
                        f"{error}. {fixed.capitalize()}, and the limit is {self._memory_limit}"
                    ) from error
            rows = self.rows_max = rows // 2
            # A new session: the old one's arena keeps what it has taken, in chunks that fit the larger batch.
            del self._session
            self._session = self._open()
            self._shared = shared_inputs(self._session)
        if self._on_forward is not None:
            self._on_forward(len(input_))
        return output_BN

    @property
    def _is_on_cuda(self) -> bool:
        return self.provider == CUDA_PROVIDER

    def _compare(self, open_on_cpu: Callable[[], AnySession], dataset: Dataset | None) -> None:
        """Run some pictures on CUDA and on the CPU, and note how their outputs differ. Raises DeviceUnavailable."""
        images = pictures_to_compare(dataset, self.graph, self.preprocessing)
        if images is None:
            self._reason += "; not compared with the CPU, as nothing tells how large pictures are"
            return
        input_ = self.preprocess(images)
        here_BN = self._run(input_)
        rows = 1 if self.graph.runs_alone else self.batch or len(input_)
        there_BN = run_in_calls(open_on_cpu(), input_, rows, is_filled=self.batch is not None)
        found, warning = compare_with_cpu(here_BN, there_BN, is_half=self.graph.is_half, device=self.device)
        self._reason += f"; its outputs for {len(images)} pictures differ from the CPU's by {found}"
        if warning is not None:
            self.warnings += (warning,)
