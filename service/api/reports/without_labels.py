"""Columns of tables of results for splits without labels: agreement with the teacher, and KL to it."""

from collections.abc import Callable, Iterator, Sequence

from service.api.schemas.reports import Estimate, GroupSplit, ReportGroup, ReportRow

# Writes an estimate times a factor with so many digits.
Write = Callable[[Estimate | None, float, int], str]


def unlabelled_splits(groups: Sequence[ReportGroup], splits: Sequence[str]) -> list[str]:
    """Splits that were measured by the teacher's answers alone: no group has an accuracy there."""
    measured = {split: [each for group in groups if (each := getattr(group, split)) is not None] for split in splits}
    return [split for split, found in measured.items() if found and all(each.top1 is None for each in found)]


def group_headers(unlabelled: Sequence[str]) -> list[str]:
    """Headers of ``group_cells``."""
    return [f"{name} {split}" for split in unlabelled for name in ("agreement", "KL")]


def group_cells(group: ReportGroup, unlabelled: Sequence[str], write: Write) -> Iterator[str]:
    """Cells of a group: agreement in percent, KL in nats."""
    for split in unlabelled:
        found: GroupSplit | None = getattr(group, split)
        yield write(getattr(found, "agreement", None), 100, 2)
        yield write(getattr(found, "kl", None), 1, 4)


def run_columns(rows: Sequence[ReportRow]) -> list[tuple[str, str, float]]:
    """(header, field of the row, factor) of what there is of runs on splits without labels."""
    columns: list[tuple[str, str, float]] = []
    if any(row.kl_to_teacher is not None and row.accuracy is None for row in rows):
        columns.append(("KL", "kl_to_teacher", 1.0))
    if any(row.validation_agreement is not None and row.validation_accuracy is None for row in rows):
        columns.append(("agreement validation", "validation_agreement", 100.0))
        columns.append(("KL validation", "validation_kl_to_teacher", 1.0))
    return columns
