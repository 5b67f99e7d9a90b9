"""Statistics of one view: the same as a reader has, read without the others."""

from pathlib import Path
from typing import Any

import pytest

from store import CacheCorrupt, CacheNotFound, CacheReader, RowOutOfRange, chunk_files, layout, read_view_statistics
from tests.support.store_cases import make_spec, write_cache


def test_view_statistics_are_those_of_the_reader_and_touch_no_other_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(views=2, samples=4196, augmentation={"recipe": "crop_flip"})
    write_cache(tmp_path, spec)
    with CacheReader(tmp_path, spec) as reader:
        expected = [reader.statistics(view) for view in range(2)]
    blocks, read_chunk = set[int](), chunk_files.read_chunk

    def recorded(*given: Any, **named: Any) -> Any:  # noqa: ANN401
        blocks.add(given[3])
        return read_chunk(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(chunk_files, "read_chunk", recorded)
        read_spec, found = read_view_statistics(tmp_path, spec.key, 1)
    assert read_spec == spec
    assert found.keys() == expected[1].keys()
    assert all((found[name] == expected[1][name]).all() for name in found)
    assert not (found["max"] == expected[0]["max"]).all()
    assert blocks == {2, 3}
    with pytest.raises(RowOutOfRange, match="view 2 does not exist: there are 2"):
        read_view_statistics(tmp_path, spec.key, 2)
    with pytest.raises(CacheNotFound):
        read_view_statistics(tmp_path, "0" * 64, 0)


def test_view_statistics_that_are_damaged_are_refused(tmp_path: Path) -> None:
    spec = make_spec()
    write_cache(tmp_path, spec)
    path = layout.group_path(tmp_path, spec.key) / layout.chunk_name("max", spec, 0)
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    with pytest.raises(CacheCorrupt, match="max"):
        read_view_statistics(tmp_path, spec.key, 0)
