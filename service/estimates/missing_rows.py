"""Rows of each teacher of a job that are in no cache yet, by the keys of caches that are known: nothing is examined."""

from collections.abc import Collection, Sequence

from store import CacheNotFound, CacheSpec, Catalog
from workers.teacher.combined_cache import members_of


def missing_rows(
    rows: int, teachers: Sequence[str], keys: Collection[str], *, alone: Sequence[Collection[str]], catalog: Catalog
) -> list[int]:
    """Rows that each teacher still has to infer, in the job's order.

    Args:
        rows: of all caches of one teacher.
        teachers: SHA-256 of each; a file that is there twice is taken for as far with both.
        keys: of caches that the job has told of, or one with the same caches; of several teachers those of the
            combination, and of members.
        alone: of caches of each of several teachers, by jobs of that teacher alone.
    """
    # By split, as of several teachers none is asked for rows that are combined already.
    whole, own = dict[str, int](), [dict[str, int]() for _ in teachers]

    def count(found: dict[str, int], key: str) -> None:
        if (known := _look_up(key, catalog)) is not None:
            spec, committed = known
            found[spec.split] = max(found.get(spec.split, 0), committed)

    for key in keys:
        known = _look_up(key, catalog)
        if known is None:
            continue
        members = members_of(known[0])
        if members or len(teachers) == 1:
            count(whole, key)
        for number, member in enumerate(members):
            count(own[number], member)
        for number, sha256 in enumerate(teachers):
            if not members and sha256 == known[0].teacher_sha256:
                count(own[number], key)
    for number, some in enumerate(alone):
        for key in some:
            count(own[number], key)
    return [
        max(0, rows - sum(max(whole.get(split, 0), each.get(split, 0)) for split in whole.keys() | each.keys()))
        for each in own
    ]


def _look_up(key: str, catalog: Catalog) -> tuple[CacheSpec, int] | None:
    """Specification and committed rows of a cache; None where it is not there."""
    try:
        found = catalog.get(key)
    except CacheNotFound:
        return None
    return None if found.spec is None else (found.spec, found.rows_committed)
