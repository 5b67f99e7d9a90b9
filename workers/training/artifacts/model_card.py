"""Model card of a student: README.md with the front matter that Hugging Face reads.

What Retort cannot know (the licence, the intended use) is marked TO BE FILLED IN.
"""

import json
from collections.abc import Mapping

from workers.config.combination import Combination
from workers.config.task import Origin
from workers.texts import printable

_UNKNOWN = "TO BE FILLED IN"
# Shown beside them where a split has no labels.
_OF_TEACHER = {"agreement": "agreement with the teacher", "kl": "KL to the teacher"}
_FIGURES = {"top1": "accuracy", "top5": "top-5 accuracy", "nll": "negative log-likelihood", "ece": "ECE, 15 bins"}
_LOAD_TIMM = """```python
import timm

model = timm.create_model("local-dir:model", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
```"""
_LOAD_PROGRAM = """```python
import torch

model = torch.export.load("model/model.pt2").module()  # any number of pictures, float32 [N, K, H, W]
```

`torch.export.load` unpickles parts of what it is given: use it on files that you trust (Retort's list of a run's files
has the SHA-256 of this archive). `model.safetensors` and Retort's `student.onnx` hold no code."""


def model_card(student: str, timm: str | None, origin: Origin | None, result: Mapping[str, object]) -> str:
    """README.md of a student's folder.

    Args:
        student: its name in the catalog.
        timm: timm's name of it, or None.
        origin: the job and the teacher; None where no job was posted.
        result: result.json as far as it is known.
    """
    front = {
        "library_name": "timm" if timm else "pytorch",
        "pipeline_tag": "image-classification",
        "license": "other",
        "license_name": _UNKNOWN,
        "license_link": _UNKNOWN,
        "tags": ["image-classification", "knowledge-distillation", "retort"],
    }
    figures = _figures(result)
    parts = [
        # JSON is YAML, whatever the names have in them.
        "---\n" + "".join(f"{name}: {json.dumps(value)}\n" for name, value in front.items()) + "---",
        f"# {_text(student)}",
        f"**Licence: {_UNKNOWN}** (`license`, `license_name`, `license_link` above). It has to agree with those of the "
        "teacher and of the pictures.\n\n"
        f"**Intended use: {_UNKNOWN}**",
        "## Load it\n\n" + (_LOAD_TIMM if timm else _LOAD_PROGRAM),
        "Input: pictures resized to the size in `config.json` (bilinear; the whole picture, nothing is cut off), "
        "divided by 255, normalised with its `mean` and `std`. Output: logits in the order of its `label_names`; "
        "softmax(logits / `temperature`) is calibrated if `temperature` is a number.",
        "## How it was made\n\n" + _table(_making(origin, result)),
        "## Figures\n\n" + (_figure_table(figures) if figures else "None were measured."),
        "## Environment\n\n" + _table(_mapping(result.get("environment"))),
    ]
    return "\n\n".join(parts) + "\n"


def _making(origin: Origin | None, result: Mapping[str, object]) -> dict[str, object]:
    told: dict[str, object] = {
        "method": result.get("method"),
        "seed": result.get("seed"),
        "epochs": result.get("epochs"),
        "parameters": result.get("parameters"),
    }
    if origin is not None:
        teacher, [method] = origin.teacher, origin.job.methods
        several = [f"{each.weight:g} x {each.name or 'without a name'}" for each in origin.teachers]
        digests = [each.sha256 for each in origin.teachers] or [teacher.sha256]
        told |= {
            "teacher": " + ".join(several) or teacher.name or "without a name",
            _digests_of(origin): ", ".join(digests),
            "combination of the teachers": _combination(origin) if several else None,
            "dataset": json.dumps(origin.job.dataset.model_dump(mode="json")),
            "method, all parameters": json.dumps(method.expand().model_dump(mode="json")),
            "views": json.dumps(origin.job.views.model_dump(mode="json")),
            "training": json.dumps(origin.job.training.model_dump(mode="json")),
        }
    return told


def _digests_of(origin: Origin) -> str:
    if origin.teachers:
        is_any_imported = any(each.caches for each in origin.teachers)
        return f"SHA-256 of the teachers' ONNX files{' or imported logits' if is_any_imported else ''}"
    return "SHA-256 of the imported logits" if origin.teacher.caches else "SHA-256 of the teacher's ONNX file"


def _combination(origin: Origin) -> str:
    return json.dumps((origin.job.combine or Combination()).model_dump(mode="json"))


def _figures(result: Mapping[str, object]) -> dict[str, Mapping[str, object]]:
    """Metrics of the weights that are here, for each split that was measured."""
    measured = _mapping(result.get("evaluation")) or {"test": result.get("last")}
    return {split: _mapping(metrics) for split, metrics in measured.items() if metrics}


def _figure_table(figures: Mapping[str, Mapping[str, object]]) -> str:
    lines = ["| figure | " + " | ".join(figures) + " |", "|---|" + "---|" * len(figures)]
    is_labelled = all(metrics.get("top1") is not None for metrics in figures.values())
    for name, title in (_FIGURES if is_labelled else _FIGURES | _OF_TEACHER).items():
        values = [metrics.get(name) for metrics in figures.values()]
        shown = [f"{value:.4f}" if isinstance(value, float) else "" for value in values]
        lines.append(f"| {title} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _table(facts: Mapping[str, object]) -> str:
    rows = [f"| {_text(name)} | {_text(value)} |" for name, value in facts.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *rows])


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str:
    """A value in a cell of a table: on one line, without what Markdown or HTML would take as its own."""
    text = printable(str(value)).replace("\n", " ")
    for sign in "\\|<>`*_[]":
        text = text.replace(sign, f"\\{sign}")
    return text
