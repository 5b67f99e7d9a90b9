"""Rows of each teacher that are in no cache yet: those of combinations, of members and of jobs of one teacher."""

from pathlib import Path
from typing import Any

from pydantic import JsonValue

from service.estimates.missing_rows import missing_rows
from store import CacheSpec, Catalog
from tests.support.store_cases import make_spec, write_cache
from workers.teacher.combined_cache import COMBINED

FIRST, SECOND = "1" * 64, "2" * 64


def cache(root: Path, **changes: Any) -> CacheSpec:  # noqa: ANN401
    """A complete cache."""
    spec = make_spec(**changes)
    write_cache(root, spec)
    return spec


def combined(root: Path, members: list[CacheSpec], **changes: Any) -> CacheSpec:  # noqa: ANN401
    description: dict[str, JsonValue] = {COMBINED: {"members": [member.key for member in members]}}
    return cache(root, teacher_sha256="3" * 64, preprocessing=description, **changes)


def test_missing_rows_are_counted_for_each_teacher_by_all_keys_that_are_known(tmp_path: Path) -> None:
    catalog, teachers = Catalog(tmp_path), [FIRST, SECOND]
    first = cache(tmp_path, teacher_sha256=FIRST)
    rows, split = first.samples * first.views, first.split
    both = 3 * rows
    # Of nothing that is known, of a member at work, and of jobs of one teacher alone.
    assert missing_rows(both, teachers, [], alone=[(), ()], catalog=catalog) == [both, both]
    assert missing_rows(both, teachers, [first.key], alone=[(), ()], catalog=catalog) == [both - rows, both]
    assert missing_rows(both, teachers, [], alone=[(), (first.key,)], catalog=catalog) == [both, both - rows]
    assert missing_rows(both, [FIRST], [first.key, "f" * 64], alone=[], catalog=catalog) == [both - rows]
    # A combination names its members, which may be gone: of what is combined nobody is asked again.
    gone = make_spec(teacher_sha256=SECOND, augmentation_seed=9)
    whole = combined(tmp_path, [first, gone])
    assert whole.split == split
    assert missing_rows(both, teachers, [whole.key], alone=[(), ()], catalog=catalog) == [both - rows, both - rows]
