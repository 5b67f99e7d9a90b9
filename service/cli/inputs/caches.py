"""Commands about caches: list, show, verify, pin, unpin, delete; through the service, or on a folder itself.

With ``--data-dir`` they open the folder's catalog, which needs no service. Only there can the
teacher be run again (``verify --recompute``): the API process has no teacher engine. Keys may be
shortened to any unambiguous beginning of four digits or more.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from service.cli import render
from service.cli.base import BadInput, CommandFailed, parse_json, session
from service.cli.inputs.cache_sources import CacheSource, FolderCaches, ServiceCaches
from service.cli.inputs.resources import PANEL, OutputKindName, is_description, json_object, names_of
from service.client.transport import Document
from service.paths import EXPORT_SUFFIXES

_DIGITS_SHOWN = 12

cache = typer.Typer(no_args_is_help=True, help="The caches of teacher logits.")
KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="Or the beginning of one.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(cache, name="cache", rich_help_panel=PANEL)


@cache.callback()
def _options(
    context: typer.Context,
    data_dir: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Act on this folder, without asking a service."),
    ] = None,
) -> None:
    if data_dir is not None:
        context.obj = data_dir


@contextmanager
def _source(context: typer.Context) -> Iterator[CacheSource]:
    data_dir = context.find_object(Path)
    if data_dir is not None:
        yield FolderCaches(data_dir)
        return
    with session(context).client() as client:
        yield ServiceCaches(client)


@cache.command("list")
def list_caches(
    context: typer.Context,
    imported: Annotated[bool, typer.Option("--imported", help="Only those whose logits were imported.")] = False,
) -> None:
    """List the caches."""
    with _source(context) as source:
        found = source.list(imported=imported)
    headers = ("key", "state", "split", "rows>", "classes>", "size>", "last used")
    session(context).show(found, lambda: render.table(headers, map(_row, found)))


@cache.command("show")
def show_cache(context: typer.Context, key: KeyArgument) -> None:
    """Show what one cache was made from."""
    with _source(context) as source:
        document = source.get(source.resolve(key))
    session(context).show(document, lambda: _page(document))


@cache.command("verify")
def verify_cache(
    context: typer.Context,
    key: KeyArgument,
    recompute: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Also run the teacher again on N rows; needs --data-dir."),
    ] = None,
) -> None:
    """Read every checksum and statistic again; exit status 1 if anything is wrong."""
    data_dir = context.find_object(Path)
    if recompute is not None and data_dir is None:
        raise typer.BadParameter(
            "--recompute runs the teacher on this machine: name the service's folder, "
            "`retort cache --data-dir DIR verify KEY --recompute N`"
        )
    with _source(context) as source:
        whole = source.resolve(key)
        document = source.verify(whole)
    if recompute is not None and data_dir is not None and document["ok"]:
        document["recompute"] = _recompute(data_dir, whole, recompute)
    session(context).show(document, lambda: _findings(document))
    again = document.get("recompute")
    if not document["ok"]:
        raise CommandFailed(f"cache {whole[:_DIGITS_SHOWN]} is damaged: delete it, or restore it")
    if again is not None and not again["ok"]:
        raise CommandFailed(
            f"the teacher differs by {again['max_abs_difference']:.3g} from cache "
            f"{whole[:_DIGITS_SHOWN]}, which is more than rounding explains"
        )


@cache.command("pin")
def pin_cache(context: typer.Context, key: KeyArgument) -> None:
    """Keep a cache from eviction and deletion."""
    with _source(context) as source:
        source.pin(source.resolve(key))


@cache.command("unpin")
def unpin_cache(context: typer.Context, key: KeyArgument) -> None:
    """Let a cache be evicted and deleted again."""
    with _source(context) as source:
        source.unpin(source.resolve(key))


@cache.command("delete")
def delete_cache(context: typer.Context, key: KeyArgument) -> None:
    """Delete a cache; the next job that wants it runs the teacher again. Imported logits are gone."""
    with _source(context) as source:
        source.delete(source.resolve(key))


@cache.command("export")
def export_cache(
    context: typer.Context,
    key: KeyArgument,
    format: Annotated[
        Literal["npz", "parquet", "zarr"], typer.Option(help="zarr is a zip of the cache as it is stored.")
    ] = "npz",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", dir_okay=False, help="The file to write.", show_default="KEY.npz")
    ] = None,
) -> None:
    """Write logits, statistics, sample ids and labels of a cache to one file."""
    with _source(context) as source:
        whole = source.resolve(key)
        path = output or Path(f"{whole[:_DIGITS_SHOWN]}{EXPORT_SUFFIXES[format]}")
        source.export(whole, path, format)
    size_bytes = path.stat().st_size
    document = {"key": whole, "path": str(path), "size_bytes": size_bytes}
    session(context).show(document, lambda: Text(f"{path}: {render.size(size_bytes)}"))


@cache.command("import")
def import_cache(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True)],
    dataset: Annotated[str, typer.Option(metavar="NAME|ID|JSON|FILE", help="The dataset whose samples they are of.")],
    split: Annotated[Literal["train", "validation", "test"], typer.Option(help="Of the dataset.")] = "train",
    source: Annotated[str, typer.Option(help="Where they come from, for people.")] = "",
    in_order: Annotated[
        bool, typer.Option("--in-order", help="Row k is sample k of the split; else rows are matched by sample ids.")
    ] = False,
    output_kind: Annotated[
        OutputKindName | None, typer.Option(help="What the values are; told by them by default.")
    ] = None,
    class_names: Annotated[
        str | None, typer.Option(metavar="JSON|FILE", help="Names of the columns: JSON, or a file with one a line.")
    ] = None,
    class_map: Annotated[
        str | None,
        typer.Option(metavar="JSON|FILE", help="Columns or names of classes that the dataset calls otherwise."),
    ] = None,
    views: Annotated[
        str | None, typer.Option(metavar="JSON|FILE", help="The views of the jobs to come; plain pictures by default.")
    ] = None,
    validation: Annotated[
        str | None, typer.Option(metavar="JSON|FILE", help="The holdout of these jobs, of split validation.")
    ] = None,
    dtype: Annotated[Literal["float16", "float32"] | None, typer.Option(help="Of the stored rows.")] = None,
    encoding: Annotated[
        str | None, typer.Option(metavar="NAME|JSON", help="dense, uint8, or JSON of a sparse one.")
    ] = None,
    accept_teacher: Annotated[
        bool, typer.Option("--accept-teacher", help="Import them although their accuracy or class order is doubted.")
    ] = False,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Decode a large dataset within the request, which waits for it.")
    ] = False,
) -> None:
    """Import logits of a split, made anywhere, as a cache that jobs name in "caches".

    FILE is npy, npz or Parquet: logits [views, samples, classes] with sample_ids, as export writes them, or values and
    indices of top-k.
    """
    if context.find_object(Path) is not None:
        raise BadInput("an import is checked by the service: leave --data-dir out")
    options = session(context)
    with options.client() as client:
        made = client.import_cache(
            file,
            json_object(dataset, "--dataset") if is_description(dataset) else dataset,
            split=split,
            source=source,
            in_order=in_order,
            output_kind=output_kind,
            class_names=None if class_names is None else names_of(class_names),
            class_map=None if class_map is None else json_object(class_map, "--class-map"),
            views=None if views is None else json_object(views, "--views"),
            validation=None if validation is None else json_object(validation, "--validation"),
            dtype=dtype,
            encoding=parse_json(encoding, "--encoding") if encoding and encoding.startswith("{") else encoding,
            accept_teacher=accept_teacher,
            prepare=prepare,
        )
    for warning in made["warnings"]:
        render.console(stderr=True).print(f"warning: {warning}")
    options.show(made, lambda: Text(made["key"]))


def _recompute(data_dir: Path, key: str, rows: int) -> Document:
    # torch and ONNX Runtime: seconds to load, and not installed beside a mere client.
    from workers.teacher.recheck import recheck_rows

    report = recheck_rows(data_dir, key, rows)
    return {
        "rows": report.rows,
        "max_abs_difference": report.max_abs_difference,
        "allowed": report.allowed,
        "ok": report.ok,
    }


def _row(item: Document) -> tuple[str | Text, ...]:
    spec = item["spec"] or {}
    views = f" x {spec['views']} views" if spec.get("views", 1) > 1 else ""
    encoding = spec.get("encoding", "dense")
    kind = encoding if isinstance(encoding, str) else encoding["kind"]
    return (
        item["key"][:_DIGITS_SHOWN],
        _state(item),
        spec.get("split", "") + views + ("" if kind == "dense" else f", {kind}"),
        f"{item['rows_committed']:,}",
        str(spec.get("classes", "")),
        render.size(item["size_bytes"]),
        render.moment(item["last_used_at"]),
    )


def _state(item: Document) -> Text:
    # A service of an earlier version does not send it.
    return render.state(item["state"]) + Text(", pinned" if item.get("pinned") else "")


def _page(item: Document) -> RenderableType:
    pairs = {
        "key": item["key"],
        "state": _state(item),
        "problem": item["problem"],
        "rows": f"{item['rows_committed']:,}",
        "size": render.size(item["size_bytes"]),
        "created": render.moment(item["created_at"]),
        "last used": render.moment(item["last_used_at"]),
        **_use(item.get("use")),
    }
    pairs |= {name: str(value) for name, value in (item["spec"] or {}).items()}
    # A service of an earlier version does not send it.
    return render.facts(pairs | {name: str(value) for name, value in item.get("provenance", {}).items()})


def _use(use: Document | None) -> dict[str, str]:
    """Facts about who uses a cache; none of a folder's, nor of a service of an earlier version."""
    if use is None:
        return {}
    seconds = use["seconds_saved"]
    rate = "" if seconds is None else f", {render.duration(seconds)} at {use['rows_per_s']:,.0f} pictures/s"
    return {"jobs": f"{use['jobs_total']:,}", "saved": f"{use['forwards_saved']:,} forward passes{rate}"}


def _findings(document: Document) -> RenderableType:
    counts = f"{document['blocks_checked']:,} blocks, {document['rows_checked']:,} rows"
    verdict = "every checksum and statistic is right" if document["ok"] else "damaged"
    lines = [Text(f"{counts}: {verdict}"), *map(Text, document["problems"])]
    again = document.get("recompute")
    if again is not None:
        lines.append(
            Text(
                f"{again['rows']:,} rows through the teacher again: the largest difference is "
                f"{again['max_abs_difference']:.3g} (rounding explains {again['allowed']:.3g})"
            )
        )
    return Group(*lines)
