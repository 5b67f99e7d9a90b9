"""Preprocessings as others publish them: what they become, and what is refused by name."""

import json
from collections.abc import Mapping

import pytest
from pydantic import ValidationError

from workers.config.teacher import Preprocessing
from workers.errors import UnknownName

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def became(document: object) -> dict[str, object]:
    """Fields that are not the default's, from the JSON that a client sends."""
    read = Preprocessing.model_validate_json(json.dumps(document))
    # What a teacher's document shows is read back as the same.
    assert Preprocessing.model_validate_json(read.model_dump_json()) == read
    fields = json.loads(read.model_dump_json())
    plain = json.loads(Preprocessing().model_dump_json())
    return {name: value for name, value in fields.items() if value != plain.get(name)}


def test_preprocessing_without_new_fields_is_spelt_as_before() -> None:
    assert set(Preprocessing(size=(8, 8)).model_dump(mode="json")) == {
        "size",
        "mean",
        "std",
        "channels",
        "layout",
        "scale",
    }


def test_imagenet_is_torchvisions_preset() -> None:
    expected = {"size": [224, 224], "resize": 256, "interpolation": "bilinear"}
    assert became("imagenet") == expected
    with pytest.raises(UnknownName, match=r"unknown preprocessing 'imagnet'\. Did you mean 'imagenet'"):
        Preprocessing.model_validate("imagnet")


def test_resize_has_pillows_bilinear_unless_another_is_named() -> None:
    assert Preprocessing(size=(224, 224), resize=256).interpolation == "bilinear"
    assert Preprocessing(size=(224, 224), resize=256, interpolation="lanczos").interpolation == "lanczos"
    assert Preprocessing(size=(224, 224)).interpolation is None


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"resize": 256}, "resize and interpolation without size"),
        ({"interpolation": "bicubic"}, "interpolation without size"),
        ({"size": [224, 224], "resize": 200}, "resize is 200, less than size [224, 224]"),
        ({"size": [224, 200], "resize": [256, 199]}, r"resize is \(256, 199\), less than size [224, 200]"),
        ({"size": [224, 224], "interpolation": "cubic"}, "bicubic"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields: Mapping[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says.replace("[", r"\[").replace("]", r"\]")):
        Preprocessing.model_validate_json(json.dumps(fields))


# ------------------------------------------------------------------------------------------------------------- timm

RESNET = {
    "architecture": "resnet50",
    "num_classes": 1000,
    "pretrained_cfg": {
        "tag": "a1_in1k",
        "license": "apache-2.0",
        "input_size": [3, 224, 224],
        "test_input_size": [3, 288, 288],
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "crop_mode": "center",
        **IMAGENET,
        "pool_size": [7, 7],
        "first_conv": "conv1",
        "classifier": "fc",
    },
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {"size": [224, 224], "resize": 235, "interpolation": "bicubic"}),
        ({"crop_pct": 0.875, "interpolation": "bilinear"}, {"size": [224, 224], "resize": 256}),
        ({"crop_pct": None, "interpolation": None}, {"resize": 256, "interpolation": "bicubic"}),
        ({"crop_pct": 1.0}, {"size": [224, 224], "resize": 224}),
        ({"crop_pct": 0.9, "crop_mode": "squash"}, {"size": [224, 224], "resize": [248, 248]}),
        ({"crop_pct": 1.0, "crop_mode": "squash", "input_size": [3, 32, 48]}, {"size": [32, 48]}),
        ({"mean": [0.5], "std": [0.25]}, {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}),
        (
            {"input_size": [1, 28, 28], "mean": [0.5], "std": [0.5]},
            {"channels": "gray", "mean": [0.5], "size": [28, 28]},
        ),
    ],
)
def test_timm_config_becomes_what_create_transform_evaluates_with(
    change: Mapping[str, object], expected: Mapping[str, object]
) -> None:
    pretrained = {**RESNET["pretrained_cfg"], **change}
    for document in ({**RESNET, "pretrained_cfg": pretrained}, pretrained):
        found = became(document)
        assert {name: found.get(name) for name in expected} == expected
        assert ("resize" in found) == ("resize" in expected or change.get("crop_mode") != "squash")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"crop_mode": "border"}, "crop_mode 'border' cannot be translated"),
        ({"input_size": [3, 224, 300]}, r"crop_mode 'center' with input_size \[3, 224, 300\], which is not square"),
        ({"interpolation": "random"}, "interpolation 'random' cannot be translated"),
        ({"crop_pct": 1.2}, "crop_pct is 1.2"),
        ({"input_size": 224}, "input_size is 224"),
        ({"input_size": [4, 8, 8], "mean": [0.5], "std": [0.5]}, "at most 3 are allowed"),
    ],
)
def test_timm_step_that_cannot_be_said_is_refused_by_name(change: Mapping[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Preprocessing.model_validate({**RESNET, "pretrained_cfg": {**RESNET["pretrained_cfg"], **change}})


# ----------------------------------------------------------------------------------------------------- Hugging Face

VIT = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    **HALVES,
    "image_processor_type": "ViTImageProcessor",
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 224, "width": 224},
}
CONVNEXT = {
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": IMAGENET["mean"],
    "image_std": IMAGENET["std"],
    "resample": 3,
    "size": 224,
}
CLIP = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    **HALVES,
    "image_processor_type": "CLIPImageProcessorFast",
    "resample": 3,
    "size": {"shortest_edge": 256},
    "do_pad": False,
    "device": None,
}
OLD_VIT = {"do_normalize": True, "do_resize": True, **HALVES, "resample": 2, "size": 224}


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (VIT, {"size": [224, 224], "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}),
        (
            {**OLD_VIT, "feature_extractor_type": "ViTFeatureExtractor"},
            {"size": [224, 224], "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3},
        ),
        (CONVNEXT, {"size": [224, 224], "resize": 256, "interpolation": "bicubic"}),
        ({**CONVNEXT, "size": {"shortest_edge": 384}}, {"size": [384, 384], "interpolation": "bicubic"}),
        (
            CLIP,
            {"size": [224, 224], "resize": 256, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3},
        ),
        (
            {**VIT, "do_normalize": False, "do_rescale": False, "resample": 0},
            {"size": [224, 224], "interpolation": "nearest", "mean": [0.0] * 3, "std": [1.0] * 3, "scale": 1.0},
        ),
        ({**VIT, "do_resize": False}, {"mean": [0.5] * 3, "std": [0.5] * 3}),
    ],
)
def test_hugging_face_config_becomes_what_its_processor_does(
    document: Mapping[str, object], expected: Mapping[str, object]
) -> None:
    assert became(document) == expected


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({**CLIP, "do_pad": True}, "do_pad = True of this processor cannot be translated"),
        ({**VIT, "do_flip_channel_order": True}, "do_flip_channel_order = True"),
        ({**VIT, "data_format": "channels_last"}, "data_format = 'channels_last'"),
        ({**VIT, "image_processor_type": "LevitImageProcessor"}, "'LevitImageProcessor' has rules of its own"),
        ({**CLIP, "size": {"shortest_edge": 224, "longest_edge": 300}}, "size is {'shortest_edge': 224"),
        ({**CLIP, "do_center_crop": None}, "do_center_crop is left to the processor's class"),
        ({**CLIP, "do_center_crop": False}, "size.shortest_edge without a centre crop"),
        ({**CLIP, "do_resize": False}, "do_center_crop without do_resize"),
        ({**CLIP, "size": {"shortest_edge": 200}}, "resize is 200, less than size"),
        ({**VIT, "do_center_crop": True}, "do_center_crop of the processor 'ViT'"),
        ({**VIT, "resample": None}, "resample is left to the processor's class"),
        ({**VIT, "resample": 9}, "resample is 9"),
        ({**VIT, "image_mean": None}, "image_mean is left to"),
        ({**VIT, "crop_pct": 0.9}, "crop_pct of the processor 'ViT'"),
        (OLD_VIT, "size is 224, which is both sides or the shorter one"),
    ],
)
def test_hugging_face_step_that_cannot_be_said_is_refused_by_name(document: Mapping[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Preprocessing.model_validate(document)
