"""Artifacts that a run leaves: weights, ONNX, metrics, TensorBoard events, configuration, result.

A finished run's folder appears under its final name in one rename, so a folder that has the name is
complete, and a run that was stopped or killed leaves none. The exported ONNX file is compared with
the torch student on real pictures, through the same class that reads teachers: what is exported here
can be uploaded there.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from workers.augmentation.apply import to_input
from workers.config.teacher import Preprocessing
from workers.errors import WorkerError
from workers.files import disk_full_is_disk_low, sync, sync_folder
from workers.run_files import ARTIFACTS, EVENT_FILE, ONNX, WEIGHTS
from workers.teacher.teacher import Teacher
from workers.training.event_file import write_event_file
from workers.training.host_copy import to_host

# float32 convolutions in another order of summation differ by about 1e-5 of the largest logit.
_PARITY = 1e-3


class ExportMismatch(WorkerError):
    """The exported ONNX student does not compute what the torch student computes."""


@dataclass(frozen=True)
class Student:
    """A trained network with the preprocessing that makes its input.

    Attributes:
        temperature: of a second output of the ONNX file, ``probabilities``; None leaves it out.
    """

    network: nn.Module
    preprocessing: Preprocessing
    temperature: float | None = None


class _WithProbabilities(nn.Module):
    """A network's logits [B, C], and softmax(logits / T) beside them."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self._network, self._temperature = network, temperature

    def forward(self, inputs_BKHW: Tensor) -> tuple[Tensor, Tensor]:
        logits_BC = self._network(inputs_BKHW)
        return logits_BC, (logits_BC / self._temperature).softmax(dim=1)


@dataclass(frozen=True)
class Written:
    """Contents of a run's artifacts beside the student itself.

    Attributes:
        config, result: config.json and result.json.
        metrics: a line of metrics.jsonl for each epoch.
        evaluation: evaluation.json.
        temperatures: temperatures.json; None for a method without.
        tensors: logits.safetensors; None leaves it out.
    """

    config: Mapping[str, object]
    metrics: Sequence[Mapping[str, float | None]]
    result: Mapping[str, object]
    evaluation: Mapping[str, object]
    temperatures: Mapping[str, object] | None = None
    tensors: Mapping[str, Tensor] | None = None


class Exported(NamedTuple):
    """A student that was exported.

    Attributes:
        difference: the largest absolute difference of a logit between the ONNX file and the torch student.
        program: what torch.export has captured of it, for any number of pictures; None in tests that export nothing.
    """

    difference: float
    program: torch.export.ExportedProgram | None


def export_onnx(student: Student, path: Path, images_BHWK: np.ndarray) -> Exported:
    """Write ``path`` and compare it with the torch student on real pictures.

    Args:
        student: evaluated in float32 on the CPU.
        path: of the ONNX file: input ``images`` float32 [batch, K, H, W], normalised as
            ``student.preprocessing`` says; output ``logits`` float32 [batch, C], and where a temperature is given
            ``probabilities``, softmax(logits / T).
        images_BHWK: uint8 pictures at the student's input size.

    Raises:
        ExportMismatch: the largest absolute difference of a logit exceeds 1e-3 of the largest logit (at least 1e-3), or
            that of a probability 1e-3.
    """
    network = student.network.cpu().eval()
    network = network.to(memory_format=torch.contiguous_format)
    names = ["logits"]
    if student.temperature is not None:
        network, names = _WithProbabilities(network, student.temperature).eval(), ["logits", "probabilities"]
    inputs = to_input(torch.from_numpy(images_BHWK), student.preprocessing, channels_last=False)
    with warnings.catch_warnings():
        # torch.export warns about its own internals; the file is judged by running it, below.
        warnings.simplefilter("ignore")
        onnx_program = torch.onnx.export(
            network,
            (inputs,),
            input_names=["images"],
            output_names=names,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
    assert onnx_program is not None
    # Stack traces, with the paths of this machine.
    onnx_program.model.graph.metadata_props.clear()
    for node in onnx_program.model.graph.all_nodes():
        node.metadata_props.clear()
    onnx_program.save(path, external_data=False)
    with torch.no_grad():
        given = network(inputs)
    differences = []
    for name, expected in zip(names, given if isinstance(given, tuple) else (given,), strict=True):
        expected_BC = expected.numpy()
        teacher = Teacher(path, student.preprocessing, output=name, threads=1, device="cpu")
        differences.append(float(np.abs(teacher.logits(images_BHWK) - expected_BC).max()))
        allowed = _PARITY * max(1.0, float(np.abs(expected_BC).max()))
        if not differences[-1] <= allowed:
            raise ExportMismatch(
                f"{name} of student.onnx differ from the torch student's by {differences[-1]:.3g} on "
                f"{len(images_BHWK)} pictures, at most {allowed:.3g} is allowed: report the student's architecture"
            )
    return Exported(differences[0], onnx_program.exported_program)


def state_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The weights and buffers, on the CPU, contiguous and unshared (what safetensors asks for)."""
    state = network.state_dict()
    on_host = to_host(list(state.values()))
    return {name: tensor.contiguous().clone() for name, tensor in zip(state, on_host, strict=True)}


def write_artifacts(
    folder: Path,
    student: Student,
    images_BHWK: np.ndarray,
    written: Written,
    heed: Callable[[], None] = lambda: None,
    more: Callable[[Path, Exported], dict[str, object]] = lambda *_: {},
) -> dict[str, object]:
    """Write everything a run leaves to ``folder/artifacts``, in one rename at the end.

    Args:
        heed: called before each part that takes its time; what it raises ends this, and nothing is left of it.
        more: adds files to the folder that holds weights and ONNX; returns their part of result.json.

    Returns:
        ``written.result`` with ``onnx_max_abs_difference`` and what ``more`` returns added, as in result.json.

    Raises:
        DiskLow: no room; nothing is left of it.
        ExportMismatch: see ``export_onnx``.
    """
    final, partial = folder / ARTIFACTS, folder / f"{ARTIFACTS}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    with disk_full_is_disk_low(folder, "a run's artifacts"):
        try:
            heed()
            partial.mkdir(parents=True)
            (partial / WEIGHTS).write_bytes(save(state_tensors(student.network)))
            heed()
            exported = export_onnx(student, partial / ONNX, images_BHWK)
            heed()
            result = {**written.result, "onnx_max_abs_difference": exported.difference, **more(partial, exported)}
            heed()
            write_json(partial / "config.json", written.config)
            lines = [json.dumps(line, allow_nan=False) for line in written.metrics]
            (partial / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
            write_event_file(partial / EVENT_FILE, written.metrics, written.temperatures)
            write_json(partial / "evaluation.json", written.evaluation, indent=None)
            if written.temperatures is not None:
                write_json(partial / "temperatures.json", written.temperatures, indent=None)
            if written.tensors is not None:
                (partial / "logits.safetensors").write_bytes(save(dict(written.tensors)))
            write_json(partial / "result.json", result)
            for path in partial.iterdir():
                with path.open("rb+") as file:
                    sync(file)
            sync_folder(partial)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            sync_folder(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return result


def write_json(path: Path, value: Mapping[str, object], indent: int | None = 2) -> None:
    """Write a JSON document; no NaN."""
    path.write_text(json.dumps(value, indent=indent, allow_nan=False) + "\n")
