"""Tables of reports as text: names that strangers chose are no markup, no command and no formula."""

import csv
import io
import re

import pytest

from service.api.reports.formats import (
    Table,
    escape_latex,
    escape_markdown,
    groups_csv,
    groups_table,
    latex,
    markdown,
    rows_csv,
)
from service.api.schemas.reports import ReportGroup

HOSTILE = [
    "a|b\nc",
    "<script>alert(1)</script>&amp;",
    "[x](javascript:alert(1)) ![y](http://e.vil) `z`",
    "**bold** _it_ ~~no~~ # head",
    "\\input{/etc/passwd} $x$ % & # _ ^ ~ { }",
    "\\\\ \\end{tabular}",
    "[2cm] * starts a row",
    "=HYPERLINK(1)",
    "\x1b[31mred\u202egnp",
]


def group(name: str) -> ReportGroup:
    return ReportGroup(job_id="job_1", student=name, method=name, runs={}, seeds=[], test=None, validation=None)


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_table_keeps_its_cells_whatever_a_name_holds(name: str) -> None:
    text = markdown(Table(["name", "n"], 1, [[name, "1"]], [name]))
    header, marks, row, empty, note = text.splitlines()
    assert (header, marks, empty) == ("| name | n |", "| --- | --: |", "")
    # Bars that are not escaped are the table's own.
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 3
    for line in (row, note):
        assert not re.search(r"[<>]|(?<!\\)(?:\\\\)*[`*_\[\]()#!~$]", line), line
        assert "\x1b" not in line
        assert "\u202e" not in line


def test_escape_markdown_leaves_what_a_person_reads() -> None:
    assert escape_markdown("kd(temperature=4), resnet8x4") == "kd\\(temperature=4\\), resnet8x4"
    assert escape_markdown("a < b & c") == "a &lt; b &amp; c"
    assert escape_markdown("www.e.vil") == "www\\.e.vil"


@pytest.mark.parametrize("name", HOSTILE)
def test_latex_table_has_no_command_that_is_not_its_own(name: str) -> None:
    text = latex(Table(["name", "n"], 1, [[name, "1"]]))
    lines = text.splitlines()
    assert lines[1:3] == [r"\begin{tabular}{lr}", r"\toprule"]
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    (row,) = lines[5:-2]
    cell = row.removesuffix(r" & 1 \\")
    assert cell != row
    assert not cell.startswith(("[", "*"))
    rest = re.sub(r"\\text[a-z]+\{\}|\\[#$%&_{}]|\{\[\}|\{\*\}|-\{\}-", "", cell)
    assert not re.search(r"[\\{}$&#^_~%]", rest), rest


def test_escape_latex_sets_signs_and_dashes_as_they_are() -> None:
    assert escape_latex("1 ± 2") == r"1 $\pm$ 2"
    assert escape_latex("a--b") == "a-{}-b"


@pytest.mark.parametrize("name", HOSTILE)
def test_groups_csv_has_no_formula_and_its_columns_are_the_same_for_no_group(name: str) -> None:
    (row,) = csv.DictReader(io.StringIO(groups_csv([group(name)])))
    assert not row["student"].startswith("=")
    assert "\x1b" not in row["student"]
    assert groups_csv([]).splitlines() == groups_csv([group(name)]).splitlines()[:1]
    assert rows_csv([]).startswith("run_id,student,method,seed,state,accuracy_last,")


def test_groups_table_names_jobs_where_names_collide_alone() -> None:
    one, other = group("a"), group("b")
    assert groups_table([one, other], {}, [], 0.95).headers[0] == "student"
    assert groups_table([one, one.model_copy(update={"job_id": "job_2"})], {}, [], 0.95).headers[0] == "job"
