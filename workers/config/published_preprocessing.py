"""Preprocessings as others publish them: names, timm's ``config.json``, Hugging Face's ``preprocessor_config.json``.

``translated`` turns them into the fields of ``workers.config.teacher.Preprocessing``. Each step that these fields
cannot say is refused by its name; what is not about pictures (licence, classes, where the weights lie) is left aside.

Sources of the rules: ``timm/data/transforms_factory.py`` (``transforms_imagenet_eval``) and ``timm/data/config.py`` of
huggingface/pytorch-image-models; ``image_processing_*.py`` of huggingface/transformers; ``transforms/_presets.py`` of
pytorch/vision. All of them centre a crop as torchvision does, to the pixel where the difference is even.
"""

import math
from collections.abc import Mapping

from workers.errors import UnknownName

Document = Mapping[str, object]

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
NAMED: Mapping[str, Document] = {
    # torchvision's ``ImageClassification(crop_size=224)``; the evaluation of nearly all of its networks.
    "imagenet": {"size": (224, 224), "resize": 256, "interpolation": "bilinear", **_IMAGENET},
}

# Pillow's numbers of its filters, as ``resample`` has them.
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
# Of Hugging Face's processors, by the beginning of their name: whether a number as ``size`` is both sides or the
# shorter one, and whether they can crop. All others have rules of their own.
_PROCESSORS: Mapping[str, tuple[bool, bool]] = {
    "ViT": (True, False),
    "DeiT": (True, True),
    "Beit": (True, True),
    "Siglip": (True, False),
    "ConvNext": (False, False),
    "CLIP": (False, True),
    "Bit": (False, True),
    "MobileNetV1": (False, True),
    "MobileNetV2": (False, True),
}
_ENDINGS = ("ImageProcessorFast", "ImageProcessor", "FeatureExtractor")
_STEPS = frozenset(
    {"do_resize", "size", "resample", "do_center_crop", "crop_size", "crop_pct", "do_rescale", "rescale_factor"}
    | {"do_normalize", "image_mean", "image_std"}
)
_NO_STEPS = frozenset(
    {"image_processor_type", "feature_extractor_type", "processor_class", "_valid_processor_keys", "do_convert_rgb"}
    | {"default_to_square"}
)
# A side from which on ConvNeXt's processor crops nothing.
_CONVNEXT_WHOLE = 384
_OURS_INSTEAD = "state the preprocessing by its own fields: size, resize, interpolation, mean, std, scale, channels"


def translated(given: object) -> object:
    """Fields of ``Preprocessing`` for a name or a document of others; everything else as it is.

    Raises:
        UnknownName: there is no preprocessing of this name.
        ValueError: a step of the document cannot be said by these fields; names it.
    """
    if isinstance(given, str):
        if given not in NAMED:
            raise UnknownName("preprocessing", given, NAMED)
        return dict(NAMED[given])
    if not isinstance(given, Mapping):
        return given
    if "pretrained_cfg" in given:
        return _of_timm(_object(given, "pretrained_cfg"))
    if "input_size" in given or ("crop_pct" in given and "image_mean" not in given):
        return _of_timm(given)
    if given.keys() & {"image_mean", "image_processor_type", "feature_extractor_type", "do_resize", "do_normalize"}:
        return _of_hugging_face(given)
    return given


def _object(document: Document, name: str) -> Document:
    value = document[name]
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is {value!r}, an object is expected: {_OURS_INSTEAD}")
    return value


# ------------------------------------------------------------------------------------------------------------- timm


def _of_timm(config: Document) -> dict[str, object]:
    """Fields for timm's ``pretrained_cfg``, with timm's defaults: what its ``create_transform`` evaluates with."""
    sides = _numbers(config.get("input_size"), 3)
    if sides is None:
        raise ValueError(
            f"input_size is {config.get('input_size')!r}, timm's is [channels, height, width]: {_OURS_INSTEAD}"
        )
    channels, *size = map(int, sides)
    mode, interpolation = config.get("crop_mode") or "center", config.get("interpolation") or "bicubic"
    if interpolation not in _RESAMPLE:
        raise ValueError(f"interpolation {interpolation!r} cannot be translated: {', '.join(_RESAMPLE)} can")
    [share] = _numbers([config.get("crop_pct") or 0.875], 1) or [math.inf]
    if share > 1:
        raise ValueError(
            f"crop_pct is {config['crop_pct']!r}: it is the share of the resized side that is kept, 0 to 1"
        )
    resized = tuple(math.floor(side / share) for side in size)
    if mode == "squash":
        resize: object = None if resized == tuple(size) else resized
    elif mode == "center" and resized[0] == resized[1]:
        resize = resized[0]
    else:
        shape = "" if mode != "center" else f" with input_size {[channels, *size]}, which is not square,"
        raise ValueError(f"crop_mode {mode!r}{shape} cannot be translated: {_OURS_INSTEAD}")
    return {
        "size": tuple(size),
        "resize": resize,
        "interpolation": interpolation,
        "mean": _per_channel(config.get("mean") or _IMAGENET["mean"], channels),
        "std": _per_channel(config.get("std") or _IMAGENET["std"], channels),
        "channels": "gray" if channels == 1 else "rgb",
    }


def _per_channel(values: object, channels: int) -> object:
    """A list with a value for each channel; one value stands for all of them, as in timm."""
    if isinstance(values, list | tuple):
        return tuple(values) * channels if len(values) == 1 else tuple(values)
    return values


def _numbers(values: object, count: int) -> list[float] | None:
    """So many numbers above 0; None if they are something else."""
    if not isinstance(values, list | tuple) or len(values) != count:
        return None
    numbers = [
        value for value in values if isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    ]
    return numbers if len(numbers) == count else None


# ----------------------------------------------------------------------------------------------------- Hugging Face


def _of_hugging_face(config: Document) -> dict[str, object]:
    """Fields for the ``preprocessor_config.json`` of an image processor.

    A processor's class fills in what its file leaves out, so steps whose default is not the same in all are asked for.
    """
    processor = _processor(config)
    for key, value in config.items():
        # What is switched off is no step.
        is_harmless = value is None or value is False or (key, value) == ("data_format", "channels_first")
        if key not in _STEPS | _NO_STEPS and not is_harmless:
            raise ValueError(f"{key} = {value!r} of this processor cannot be translated: {_OURS_INSTEAD}")
    factor = _stated(config, "rescale_factor", 1 / 255) if _stated(config, "do_rescale", True) else 1.0
    fields: dict[str, object] = {**_geometry(config, processor), "scale": factor}
    if _stated(config, "do_normalize", True):
        return fields | {"mean": _stated(config, "image_mean"), "std": _stated(config, "image_std")}
    return fields | {"mean": (0.0,) * 3, "std": (1.0,) * 3}


def _processor(config: Document) -> str | None:
    """Beginning of the class's name, one of ``_PROCESSORS``; None where the file names no class."""
    name = config.get("image_processor_type") or config.get("feature_extractor_type")
    if name is None:
        return None
    for ending in _ENDINGS:
        if isinstance(name, str) and name.endswith(ending) and name.removesuffix(ending) in _PROCESSORS:
            return name.removesuffix(ending)
    raise ValueError(
        f"the processor {name!r} has rules of its own that are not translated (those of {', '.join(_PROCESSORS)} are): "
        f"{_OURS_INSTEAD}"
    )


def _stated(config: Document, key: str, default: object = None) -> object:
    value = config.get(key)
    if value is None and default is None:
        raise ValueError(f"{key} is left to the processor's class: state it in the document")
    return default if value is None else value


def _geometry(config: Document, processor: str | None) -> dict[str, object]:
    """The fields size, resize and interpolation."""
    crop = _crop(config, processor)
    if not _stated(config, "do_resize", True):
        if crop is not None:
            raise ValueError(f"do_center_crop without do_resize cannot be translated: {_OURS_INSTEAD}")
        return {}
    number = _stated(config, "resample")
    if not isinstance(number, int) or number not in range(len(_RESAMPLE)):
        raise ValueError(f"resample is {number!r}, 0 to 5 are Pillow's filters ({', '.join(_RESAMPLE)})")
    interpolation = {"interpolation": _RESAMPLE[number]}
    exact, shorter = _size(config, processor)
    if processor == "ConvNext" and shorter is not None:
        if shorter >= _CONVNEXT_WHOLE:
            exact, shorter = (shorter, shorter), None
        else:
            [share] = _numbers([config.get("crop_pct") or 224 / 256], 1) or [math.inf]
            crop, shorter = (shorter, shorter), int(shorter / share)
    elif config.get("crop_pct") is not None:
        raise ValueError(f"crop_pct of the processor {processor!r} cannot be translated: {_OURS_INSTEAD}")
    if crop is not None:
        return {"size": crop, "resize": exact or shorter, **interpolation}
    if exact is None:
        raise ValueError(
            "size.shortest_edge without a centre crop leaves pictures of many shapes: state `size` and `resize` instead"
        )
    return {"size": exact, **interpolation}


def _crop(config: Document, processor: str | None) -> tuple[int, int] | None:
    """(height, width) of the centre crop; None without one."""
    can_crop = processor is None or _PROCESSORS[processor][1]
    if not can_crop and config.get("do_center_crop"):
        raise ValueError(f"do_center_crop of the processor {processor!r} cannot be translated: {_OURS_INSTEAD}")
    is_open = can_crop and (processor is not None or config.get("crop_size") is not None)
    if not _stated(config, "do_center_crop", None if is_open else False):
        return None
    crop = _stated(config, "crop_size")
    if isinstance(crop, int):
        return crop, crop
    return _sides(crop, "crop_size")


def _size(config: Document, processor: str | None) -> tuple[tuple[int, int] | None, int | None]:
    """(height, width) exactly, or the shorter side; the other is None."""
    size = _stated(config, "size")
    if isinstance(size, Mapping) and size.keys() == {"shortest_edge"}:
        return None, _side(size["shortest_edge"], "size.shortest_edge")
    if not isinstance(size, int):
        return _sides(size, "size"), None
    is_square = config.get("default_to_square")
    if is_square is None:
        if processor is None:
            raise ValueError(
                f"size is {size}, which is both sides or the shorter one by the processor's class: name it"
            )
        is_square = _PROCESSORS[processor][0]
    return ((size, size), None) if is_square else (None, size)


def _sides(size: object, name: str) -> tuple[int, int]:
    if not isinstance(size, Mapping) or size.keys() != {"height", "width"}:
        raise ValueError(f"{name} is {size!r}: a number, height and width, or shortest_edge can be translated")
    return _side(size["height"], f"{name}.height"), _side(size["width"], f"{name}.width")


def _side(value: object, name: str) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}, a number of pixels is expected")
    return value
