"""Columns of a teacher for a dataset's classes: names of the file's metadata, and columns that a client numbers."""

import pytest

from workers.config.teacher import TeacherReading
from workers.errors import ContractViolation
from workers.teacher.class_columns import match_classes

SAYS_NOTHING = TeacherReading()


@pytest.mark.parametrize("names", [("dog", "a", "cat"), ("cat", "cat", "bird")], ids=["some fit", "one fits twice"])
def test_metadata_that_does_not_tell_every_column_leaves_the_order(names: tuple[str, ...]) -> None:
    found = match_classes(SAYS_NOTHING, names, ("cat", "dog", "bird"), 3)
    assert (found.columns, found.matched_by) == (None, "position")
    assert "do not tell the column of each of the dataset's ('cat', 'dog', 'bird'): the classes are taken" in found.note


def test_metadata_that_tells_every_column_counts_and_refuses_where_the_order_cannot() -> None:
    assert match_classes(SAYS_NOTHING, ("b", "a"), ("a", "b"), 2).columns == (1, 0)
    with pytest.raises(ContractViolation, match="has 1 classes that the teacher lacks: 'c'"):
        match_classes(SAYS_NOTHING, ("b", "a", "d"), ("a", "c"), 3)
    with pytest.raises(ContractViolation, match="has 1 classes that the teacher lacks: 'c'"):
        match_classes(TeacherReading(class_map={"a": "b"}), ("b", "d"), ("a", "c"), 2)


@pytest.mark.parametrize(("columns", "note"), [((0, 1), ""), ((1, 0), "in another order: 'a' is column 1")])
def test_numbered_columns_of_an_output_of_open_size_are_in_order_or_not(columns: tuple[int, int], note: str) -> None:
    found = match_classes(TeacherReading(class_map=dict(zip("ab", columns, strict=True))), None, ("a", "b"), None)
    assert found.columns == (None if not note else columns)
    assert note in found.note
    assert bool(found.note) == bool(note)
