"""Tables of reports as CSV, Markdown and LaTeX: a line per run, or per group over its seeds.

Names come from strangers: a text is no formula in CSV, no markup in Markdown, no command in LaTeX. CSV has plain
numbers; the others have accuracy and ECE in percent with two decimals, differences in points.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from service.api.reports.without_labels import group_cells, group_headers, run_columns, unlabelled_splits
from service.api.schemas.reports import (
    ClassAccuracy,
    Difference,
    Estimate,
    GroupSplit,
    ReportGroup,
    ReportRow,
    SampleTest,
    TeacherResult,
)
from workers.texts import cell, printable

Grouping = Literal["runs", "seeds"]
MEDIA_TYPES = {"csv": "text/csv", "markdown": "text/markdown", "latex": "application/x-latex"}
EXTENSIONS = {"csv": "csv", "markdown": "md", "latex": "tex"}
_ESTIMATES = ("top1", "top5", "nll", "ece", "nll_calibrated", "ece_calibrated", "agreement", "kl")
_SPLITS = ("validation", "test")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~:@$])")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_LATEX = {
    **{character: f"\\{character}" for character in "#$%&_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    # After the end of a row they would be its argument.
    "[": "{[}",
    "*": "{*}",
}


@dataclass(frozen=True)
class Table:
    """Table of texts for people.

    Attributes:
        headers: of the columns.
        texts: how many columns from the left are names, which are escaped; the others are numbers, aligned right.
        rows: cells by column.
        notes: sentences below it.
    """

    headers: Sequence[str]
    texts: int
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


# --------------------------------------------------------------------------------------------------------------- CSV


def rows_csv(rows: Sequence[ReportRow]) -> str:
    """CSV of runs, a column per field of ``ReportRow``."""
    lines = ({name: cell(value) for name, value in row.model_dump(mode="json").items()} for row in rows)
    return _csv(list(ReportRow.model_fields), lines)


def groups_csv(groups: Sequence[ReportGroup]) -> str:
    """CSV of groups: means, deviations and counts of both splits, differences with their intervals; fractions."""
    lines = [dict(_group_cells(group)) for group in groups]
    names = list(lines[0]) if lines else [name for name, _ in _group_cells(_empty_group())]
    return _csv(names, lines)


def _csv(names: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _group_cells(group: ReportGroup) -> Iterator[tuple[str, Any]]:
    yield "job_id", cell(group.job_id)
    yield "student", cell(group.student)
    yield "method", cell(group.method)
    yield "runs", sum(group.runs.values())
    yield "succeeded", len(group.seeds)
    for split in _SPLITS:
        of_split: GroupSplit | None = getattr(group, split)
        for name in _ESTIMATES:
            found: Estimate | None = getattr(of_split, name, None)
            for part in ("mean", "std", "n"):
                yield f"{split}_{name}_{part}", getattr(found, part, None)
        for which in ("best", "worst"):
            of_class: ClassAccuracy | None = getattr(of_split, f"{which}_class", None)
            for part in ("index", "accuracy", "teacher"):
                yield f"{split}_{which}_class_{part}", getattr(of_class, part, None)
        difference: Difference | None = getattr(of_split, "difference", None)
        for part in ("baseline", "baseline_job_id", "mean", "std", "n", "low", "high", "p_value"):
            yield f"{split}_difference_{part}", cell(getattr(difference, part, None))
        tests: list[SampleTest] = getattr(of_split, "samples", None) or []
        yield f"{split}_mcnemar", " ".join(f"{test.seed}:{test.p_value:.3g}" for test in tests)


def _empty_group() -> ReportGroup:
    return ReportGroup(job_id="", student="", method="", runs={}, seeds=[], test=None, validation=None)


# ------------------------------------------------------------------------------------------------- tables for people


def runs_table(rows: Sequence[ReportRow]) -> Table:
    """Table of runs: of the weights that leave, on both splits."""
    has_validation = any(row.validation_accuracy is not None for row in rows)
    headers = ["student", "method", "state", "seed"]
    headers += ["top-1 validation"] if has_validation else []
    headers += ["top-1", "top-5", "NLL", "ECE", "agreement", "seconds"]
    more = run_columns(rows)
    headers += [header for header, _, _ in more]
    lines = [
        [
            row.student,
            row.method,
            row.state,
            str(row.seed),
            *([_percent(row.validation_accuracy)] if has_validation else []),
            _percent(row.accuracy),
            _percent(row.top5),
            _number(row.nll),
            _percent(row.ece),
            _percent(row.agreement),
            _number(row.seconds, 1),
            *(
                _percent(getattr(row, field)) if factor != 1 else _number(getattr(row, field))
                for _, field, factor in more
            ),
        ]
        for row in rows
    ]
    return Table(headers, 3, lines)


def groups_table(
    groups: Sequence[ReportGroup], teachers: Mapping[str, TeacherResult], notes: Sequence[str], confidence: float
) -> Table:
    """Table of groups over their seeds, validation before test, with the teacher of each job above its groups.

    Args:
        teachers: by job id.
        confidence: of the intervals, for the header.
    """
    splits = [split for split in _SPLITS if any(getattr(group, split) is not None for group in groups)]
    keys = [(group.student, group.method) for group in groups]
    # A job's id where a name does not say which.
    named = len(set(keys)) < len(keys)
    headers = [*(["job"] if named else []), "student", "method"]
    texts, headers = len(headers), [*headers, "seeds"]
    documents = [of_split for group in groups for split in splits if (of_split := getattr(group, split)) is not None]
    is_tested = any(of_split.samples for of_split in documents)
    for split in splits:
        headers += [f"{name} {split}" for name in ("top-1", "top-5", "NLL", "ECE")]
        headers += [f"difference {split} [{100 * confidence:g} %]", *([f"McNemar {split}"] if is_tested else [])]
        headers += [f"best class {split}", f"worst class {split}"]
    unlabelled = unlabelled_splits(groups, splits)
    headers += group_headers(unlabelled)
    lines = []
    for job_id, teacher in teachers.items():
        if len(teachers) == 1 or named:
            lines.append([*([job_id] if named else []), "teacher", "", "", *_teacher_cells(teacher, splits, is_tested)])
            lines[-1] += [""] * len(group_headers(unlabelled))
        lines += [
            [
                *([job_id] if named else []),
                group.student,
                group.method,
                str(len(group.seeds)),
                *_cells(group, splits, is_tested),
                *group_cells(group, unlabelled, _spread),
            ]
            for group in groups
            if group.job_id == job_id
        ]
    return Table(headers, texts, lines, notes)


def _cells(group: ReportGroup, splits: Sequence[str], is_tested: bool) -> Iterator[str]:
    for split in splits:
        of_split: GroupSplit | None = getattr(group, split)
        if of_split is None:
            yield from [""] * (7 + is_tested)
            continue
        yield _spread(of_split.top1, 100)
        yield _spread(of_split.top5, 100)
        yield _spread(of_split.nll, 1, 4)
        yield _spread(of_split.ece, 100)
        yield _points(of_split.difference, group.job_id)
        if is_tested:
            yield ", ".join(f"{_p_value(test.p_value)} (seed {test.seed})" for test in of_split.samples or ())
        yield _class(of_split.best_class)
        yield _class(of_split.worst_class)


def _teacher_cells(teacher: TeacherResult, splits: Sequence[str], is_tested: bool) -> Iterator[str]:
    for split in splits:
        known = getattr(teacher, split)
        accuracy = teacher.accuracy if split == "test" and known is None else getattr(known, "top1", None)
        yield _percent(accuracy)
        yield _percent(getattr(known, "top5", None))
        yield _number(getattr(known, "nll", None))
        yield _percent(getattr(known, "ece", None))
        yield from [""] * (3 + is_tested)


def _p_value(value: float) -> str:
    return "p < 0.0001" if value < 0.0001 else f"p = {value:.4f}"


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.2f}"


def _number(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _spread(found: Estimate | None, factor: float, digits: int = 2) -> str:
    if found is None:
        return ""
    std = "" if found.std is None else f" ± {factor * found.std:.{digits}f}"
    return f"{factor * found.mean:.{digits}f}{std}"


def _points(found: Difference | None, job_id: str) -> str:
    """Difference in points with its interval, and the baseline's job where it is another than ``job_id``."""
    if found is None:
        return ""
    job = "" if found.baseline_job_id == job_id else f" to {found.baseline_job_id}"
    if found.low is None or found.high is None:
        return f"{100 * found.mean:+.2f}{job}"
    return f"{100 * found.mean:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]{job}"


def _class(found: ClassAccuracy | None) -> str:
    if found is None:
        return ""
    teacher = "" if found.teacher is None else f" (teacher {100 * found.teacher:.2f})"
    return f"{found.index}: {100 * found.accuracy:.2f}{teacher}"


# ------------------------------------------------------------------------------------------------------------ markup


def markdown(table: Table) -> str:
    """Table of GitHub's Markdown; every character of a text that is markup is escaped."""
    marks = ["---" if index < table.texts else "--:" for index in range(len(table.headers))]
    # Numbers are this module's own, and would be unreadable if escaped.
    rows = [[*map(escape_markdown, row[: table.texts]), *row[table.texts :]] for row in table.rows]
    lines = [table.headers, marks, *rows]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return text + "".join(f"\n{escape_markdown(note)}\n" for note in table.notes)


def latex(table: Table) -> str:
    r"""Table of LaTeX (``\usepackage{booktabs}``); every character of a text that is a command is escaped."""
    columns = "".join("l" if index < table.texts else "r" for index in range(len(table.headers)))
    head = " & ".join(map(escape_latex, table.headers))
    body = "".join(" & ".join(map(escape_latex, row)) + " \\\\\n" for row in table.rows)
    notes = "".join(f"\n{escape_latex(note)}\\par\n" for note in table.notes)
    return (
        "% needs \\usepackage{booktabs,textcomp}\n"
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{head} \\\\\n\\midrule\n"
        f"{body}\\bottomrule\n\\end{{tabular}}\n{notes}"
    )


def escape_markdown(text: str) -> str:
    """Text that Markdown, and HTML inside it, shows as it is, on one line."""
    plain = "".join(_HTML.get(character, character) for character in _one_line(text))
    escaped = _MARKDOWN.sub(r"\\\1", plain)
    return re.sub(r"(?i)\bwww\.", lambda found: found[0][:-1] + "\\.", escaped)


def escape_latex(text: str) -> str:
    """Text that LaTeX sets as it is, on one line."""
    escaped = "".join(_LATEX.get(character, character) for character in _one_line(text))
    return escaped.replace("±", r"$\pm$").replace("--", "-{}-")


def _one_line(text: str) -> str:
    return " ".join(printable(text).split())
