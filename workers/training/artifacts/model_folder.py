"""``model.zip``: a trained student as a folder that timm, Hugging Face's transformers or torch load without Retort.

=====================  ===========================================================================================
``model.safetensors``  the weights, as in student.safetensors
``config.json``        architecture, class names and preprocessing; of networks that timm has, as timm reads it:
                       ``timm.create_model("local-dir:model", pretrained=True)``
``model.pt2``          of all other networks: a program of torch.export, for any number of pictures
``README.md``          model card: teacher, data, method, figures, environment, licence to fill in
=====================  ===========================================================================================

The same student gives the same bytes. Legend: K channels, H x W pixels.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from workers.config.task import Origin
from workers.config.teacher import Preprocessing
from workers.run_files import MODEL, WEIGHTS
from workers.students import timm_catalog
from workers.students.catalog import PREFIX, plain_name
from workers.students.torchvision_catalog import TIMM
from workers.training.artifacts.model_card import model_card

_ROOT = "model/"
# The first that a zip archive can say: a file's time would make each archive another.
_NO_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a student that the folder states.

    Attributes:
        student: its name in the catalog.
        class_names: in label order.
        preprocessing: from picture to input, with the input size.
        origin: the job and the teacher; None where no job was posted.
        result: result.json as far as it is known.
    """

    student: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    origin: Origin | None
    result: Mapping[str, object]

    @property
    def timm(self) -> str | None:
        """timm's name of the network; None where timm has none that computes the same from the same weights."""
        if self.student.startswith(timm_catalog.PREFIX):
            return plain_name(self.student)
        name = self.student.removeprefix(PREFIX)
        return name if self.student.startswith(PREFIX) and name in TIMM else None


def leave_model(folder: Path, facts: ModelFacts, program: torch.export.ExportedProgram | None) -> None:
    """Write ``folder/model.zip`` beside ``folder/student.safetensors``.

    Args:
        program: of the student; it is left where timm does not have the network.
    """
    with zipfile.ZipFile(folder / MODEL, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "README.md", model_card(facts.student, facts.timm, facts.origin, facts.result).encode())
        _add(archive, "config.json", (json.dumps(model_config(facts), indent=2) + "\n").encode())
        with (
            (folder / WEIGHTS).open("rb") as weights,
            archive.open(_entry("model.safetensors"), "w", force_zip64=True) as to,
        ):
            while part := weights.read(1 << 20):
                to.write(part)
        if facts.timm is None and program is not None:
            _add(archive, "model.pt2", _saved(program))


def model_config(facts: ModelFacts) -> dict[str, object]:
    """``config.json``: timm's form where timm has the network, else the same facts under plain names."""
    preprocessing = facts.preprocessing
    assert preprocessing.size is not None
    channels = preprocessing.channel_count
    calibration = facts.result.get("calibration")
    common = {
        "num_classes": len(facts.class_names),
        "label_names": list(facts.class_names),
        # softmax(logits / temperature) is calibrated; null without a validation split.
        "temperature": calibration["temperature"] if isinstance(calibration, Mapping) else None,
    }
    pictures = {
        "input_size": [channels, *preprocessing.size],
        # The whole picture at the input's size, whatever its own sides are; nothing is cut off.
        "crop_pct": 1.0,
        "crop_mode": "squash",
        "interpolation": "bilinear",
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }
    if facts.timm is None:
        return {"architecture": facts.student, **common, "preprocessing": pictures}
    config = {"architecture": facts.timm, **common}
    arguments: dict[str, object] = {"in_chans": channels} if channels != 3 else {}
    if facts.student.startswith(timm_catalog.PREFIX) and "img_size" in _timm_arguments(facts):
        arguments["img_size"] = preprocessing.size
    if arguments:
        config["model_args"] = arguments
    return {**config, "pretrained_cfg": {**pictures, "fixed_input_size": False, "num_classes": len(facts.class_names)}}


def _timm_arguments(facts: ModelFacts) -> dict[str, object]:
    """Arguments with which timm has made the student."""
    from workers.students.timm_models import input_arguments

    assert facts.preprocessing.size is not None
    return input_arguments(plain_name(facts.student), facts.preprocessing.channel_count, min(facts.preprocessing.size))


def _saved(program: torch.export.ExportedProgram) -> bytes:
    """A program as a .pt2 file, without what torch keeps of its capture: the pictures, and paths of this machine."""
    (images,), named = program.example_inputs
    program.example_inputs = ((torch.zeros_like(images),), named)
    for node in program.graph.nodes:
        for name in ("stack_trace", "from_node"):
            node.meta.pop(name, None)
    content = io.BytesIO()
    torch.export.save(program, content)
    return content.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(_ROOT + name, _NO_TIME)
    entry.external_attr = 0o644 << 16
    return entry


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(_entry(name), content)
