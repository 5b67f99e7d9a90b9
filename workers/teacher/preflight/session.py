"""Interface of a teacher as the preflight uses it, and the arrays that it takes and returns."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from workers.augmentation.draw import ViewParameters
from workers.config.teacher import Preprocessing, TeacherReading
from workers.config.views import Augmentation
from workers.onnx.checks.teacher_graph import TeacherGraph

Rows = NDArray[np.int64]
Images = NDArray[np.uint8]
Outputs = NDArray[np.float32]


class TeacherSession(Protocol):
    """The part of ``workers.teacher.teacher.Teacher`` that the preflight uses."""

    graph: TeacherGraph
    reading: TeacherReading
    preprocessing: Preprocessing
    provider: str

    @property
    def provider_reason(self) -> str:
        """Reason why it runs on that provider."""

    def outputs(
        self, images_BHWC: Images, preprocessing: Preprocessing | None = None, timeout_s: float | None = None
    ) -> Outputs:
        """The graph's own output [B, N] for uint8 pictures, no log taken."""

    def view_outputs(self, images_BHWC: Images, recipe: Augmentation, drawn: ViewParameters) -> Outputs:
        """The graph's own output [B, N] for views of uint8 pictures, no log taken."""
