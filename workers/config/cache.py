"""Cache options of a job: how the teacher's logits are stored."""

from typing import Literal

from store import Encoding, SparseEncoding
from workers.errors import InvalidJob
from workers.spec import Flag, Spec


class CacheOptions(Spec):
    """Storage of the teacher's logits.

    Attributes:
        dtype: of dense logits: ``float16`` (default, KL below 1e-6) or ``float32`` (exact).
        encoding: of the training split, which is the large one: ``dense``, ``uint8`` or sparse. The last two are lossy;
            the test split is always dense.
        allow_lossy: train although an encoding changes the direction of a method's gradient.
    """

    dtype: Literal["float16", "float32"] = "float16"
    encoding: Encoding = "dense"
    allow_lossy: Flag = False


def check_encoding(encoding: Encoding, classes: int) -> None:
    """Refuse an encoding that saves nothing for so many classes.

    Raises:
        InvalidJob: saying how it compares with dense rows.
    """
    if isinstance(encoding, SparseEncoding) and (refusal := encoding.refusal(classes)):
        raise InvalidJob(f"cache.encoding: {refusal}")
