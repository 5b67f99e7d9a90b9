"""Identity and completeness of a cache: whether a folder holds the one that was asked for, and all of it.

No chunk file is read here: see ``store.chunk_files`` and ``store.verify``.
"""

from pathlib import Path

from pydantic import JsonValue

from store import chunk_files, documents, layout
from store.documents import BlockRecord
from store.errors import CacheCorrupt, CacheIncomplete, CacheMismatch, StoreError
from store.spec import CacheSpec


def check_identity(group: Path, manifest: documents.CacheManifest, asked: CacheSpec | None = None) -> None:
    """Check the identity: raise CacheMismatch unless the group's name, its manifest and the spec asked for agree."""
    found = manifest.spec
    if asked is not None and found != asked:
        raise CacheMismatch(
            f"{group} holds another cache than its name says: "
            f"{'; '.join(asked.differences(found))}: delete it and compute it again"
        )
    if not group.name == found.key == manifest.key:
        raise CacheMismatch(
            f"{group / layout.GROUP_FILE}: its key is {manifest.key}, its spec has key {found.key}, and "
            "both must be the folder's name: a foreign or edited cache; delete it"
        )


def check_completion(group: Path, spec: CacheSpec) -> tuple[list[BlockRecord], dict[str, JsonValue]]:
    """Check the completeness; returns every block's commit record, and the provenance in COMPLETE.

    Raises CacheIncomplete without COMPLETE, CacheCorrupt if a record is missing or not the one it
    vouches for: naming the record if its files tell which, COMPLETE otherwise.
    """
    completion = documents.read_completion(group)
    found = [documents.load_record(group, spec, block) for block in range(spec.blocks)]
    records = [record for record in found if record is not None]
    if completion is None:
        raise CacheIncomplete(
            f"{group} is not complete: {len(records)} of {spec.blocks} blocks are committed and there "
            f"is no {layout.COMPLETE_FILE} marker: let a CacheWriter write the pending blocks and finish"
        )
    if len(records) < spec.blocks:
        missing = group / layout.record_name(spec, found.index(None))
        raise CacheCorrupt(f"{missing}: the commit record is missing from a finished cache")
    marker = group / layout.COMPLETE_FILE
    if completion.key != spec.key or completion.blocks != spec.blocks:
        raise CacheCorrupt(f"{marker}: written for another cache, {completion.key}")
    if completion.commits_sha256 != documents.commits_sha256(iter(records)):
        for block, record in enumerate(records):
            try:
                chunk_files.check_chunk_files(group, record)
            except CacheCorrupt as error:
                path = group / layout.record_name(spec, block)
                raise CacheCorrupt(f"{path}: a stale or foreign commit record: {error}") from error
        raise CacheCorrupt(f"{marker}: the commit records are not those that it was written for")
    return records, completion.provenance


def describe_absence(root: Path, spec: CacheSpec) -> str:
    """Sentence for a cache that is not there, with the closest one: same teacher or dataset, few differences."""
    related = []
    groups = layout.group_paths(root)
    for group in groups:
        try:
            found = documents.read_manifest(group).spec
        except StoreError:
            continue  # it cannot be the one that was meant
        same_teacher = found.teacher_sha256 == spec.teacher_sha256
        same_dataset = found.dataset_fingerprint == spec.dataset_fingerprint
        if same_teacher or same_dataset:
            differences = spec.differences(found)
            rank = (not (same_teacher and same_dataset), len(differences), group.name)
            related.append((rank, group.name, differences))
    absent = f"there is no cache {spec.key} under {root}"
    if not related:
        return f"{absent}, nor any of this teacher or dataset among the {len(groups)} that are there"
    _, name, differences = min(related)
    return f"{absent}; the closest is {name}, which differs in {'; '.join(differences)}"
