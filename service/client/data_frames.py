"""Reports as pandas data frames. pandas is imported when a frame is asked for: the client does not depend on it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from service.client.errors import MissingPackage

if TYPE_CHECKING:
    import pandas


def data_frame(rows: Sequence[Mapping[str, Any]]) -> "pandas.DataFrame":
    """Frame with a line for each row; fields of an object within it are columns ``test.top1.mean``.

    Raises:
        MissingPackage: pandas is not installed.
    """
    try:
        import pandas
    except ModuleNotFoundError as error:
        if error.name != "pandas":
            raise
        raise MissingPackage("a data frame", "pandas") from None
    return pandas.json_normalize([*rows])
