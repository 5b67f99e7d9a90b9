"""Preprocessing of a graph whose input is uint8: the scaling is in the graph, and pictures go in as they are stored."""

import json

from workers.config.teacher import Preprocessing
from workers.errors import InvalidTeacher
from workers.onnx.checks.teacher_graph import TeacherGraph


def fitted_to_input(preprocessing: Preprocessing, graph: TeacherGraph) -> Preprocessing:
    """Return a preprocessing whose scaling, where a client has stated none, is that of the graph's input."""
    if not graph.takes_bytes or preprocessing.model_fields_set & {"scale", "mean", "std"}:
        return preprocessing
    count = preprocessing.channel_count
    return preprocessing.model_copy(update={"scale": 1.0, "mean": (0.0,) * count, "std": (1.0,) * count})


def check_bytes(graph: TeacherGraph, preprocessing: Preprocessing) -> None:
    """Refuse a preprocessing that changes the values of pictures for a graph that wants them as they are stored.

    Raises:
        InvalidTeacher: saying which values leave them, and the same preprocessing without the others.
    """
    count = preprocessing.channel_count
    scaling = preprocessing.scale, preprocessing.mean, preprocessing.std
    if graph.takes_bytes and scaling != (1.0, (0.0,) * count, (1.0,) * count):
        zeros, ones = [0.0] * count, [1.0] * count
        geometry = preprocessing.model_dump(mode="json", exclude={"scale", "mean", "std"}, exclude_defaults=True)
        raise InvalidTeacher(
            f"the input {graph.inputs[0].name!r} is uint8: its scaling is in the graph, which takes pictures as they "
            f"are stored. Leave `scale`, `mean` and `std` out of the upload's preprocessing, {json.dumps(geometry)}, "
            f"or give `scale` 1.0, `mean` {zeros} and `std` {ones}"
        )
