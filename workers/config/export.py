"""Options of what a run leaves beside its weights: an int8 student, and a folder that other programs load."""

from typing import Annotated

from pydantic import Field

from workers.spec import Flag, Fraction, Spec

CALIBRATION_PICTURES_MAX = 512


class Int8(Spec):
    """Static quantisation of a student to int8, calibrated on the validation split.

    Attributes:
        max_drop: points of top-1 on the validation split, 0..1, that int8 may lose; one that loses more is not kept.
        calibration_pictures: evenly spread over the validation split, whose activations tell the ranges; all of them
            where the split has fewer.
        reduce_range: weights of 7 bits, for CPUs whose int8 products saturate (x86 without VNNI).
    """

    max_drop: Fraction = 0.01
    calibration_pictures: Annotated[int, Field(strict=True, ge=1, le=CALIBRATION_PICTURES_MAX)] = (
        CALIBRATION_PICTURES_MAX
    )
    reduce_range: Flag = False


class Export(Spec):
    """Artifacts that all runs of a job leave beside ``student.safetensors`` and ``student.onnx``.

    Attributes:
        int8: how to quantise the student; None leaves no int8 file.
        model: leave ``model.zip``, a folder that timm or torch load.
    """

    int8: Int8 | None = None
    model: Flag = True
