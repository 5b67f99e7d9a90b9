"""Records of preflights: each report is kept as JSON, named by the digest of what it depends on."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from workers.files import replacing
from workers.teacher.preflight.report import PreflightReport, ViewsReport

Report = TypeVar("Report", PreflightReport, ViewsReport)


def recorded(
    kind: type[Report], folder: Path, identity: Mapping[str, object], run: Callable[[], Report]
) -> tuple[Report, int]:
    """Read the report of an earlier preflight, or run one and record its report.

    One that an older version wrote in another shape is as good as none.

    Args:
        folder: of the records.
        identity: all that the report depends on, as JSON.

    Returns:
        The report, and the forward passes that it took now: 0 for one that was read.
    """
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    record = folder / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
    try:
        return kind.model_validate_json(record.read_text()), 0
    except (FileNotFoundError, ValidationError):
        pass
    # Not in the handler: what is raised of a preflight has no other error as its cause.
    report = run()
    record.parent.mkdir(parents=True, exist_ok=True)
    with replacing(record, "a contract report") as file:
        file.write(report.model_dump_json(indent=2).encode())
    return report, report.forwards
