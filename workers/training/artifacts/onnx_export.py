"""Export of a student to ONNX, compared with the torch student on real pictures.

That goes through the same class that reads teachers: what is exported here can be uploaded there.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from workers.augmentation.apply import to_input
from workers.config.teacher import Preprocessing
from workers.errors import WorkerError
from workers.garbage import collection_paused
from workers.teacher.teacher import Teacher

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
    with warnings.catch_warnings(), collection_paused():
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
