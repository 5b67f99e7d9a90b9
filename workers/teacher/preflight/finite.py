"""Check that a teacher's outputs are finite."""

import numpy as np

from workers.errors import NotFinite
from workers.teacher.preflight.session import Outputs, Rows


def check_finite(outputs_RN: Outputs, index_R: Rows) -> None:
    """Refuse outputs [R, N] of the samples ``index_R`` if any is NaN or infinite.

    Raises:
        NotFinite: naming the first sample.
    """
    bad = np.logical_not(np.isfinite(outputs_RN).all(axis=1))
    if bad.any():
        raise NotFinite(
            f"the teacher's outputs are NaN or infinite for {bad.sum()} of {len(bad)} pictures, the first is sample "
            f"{index_R[bad.argmax()]}: check `scale`, `mean` and `std` of its preprocessing"
        )
