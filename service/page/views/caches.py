"""Caches: their size and use, what reuse has saved, the teacher's statistics; pin, verify and delete."""

import itertools
from urllib.parse import urlencode

from nicegui import ui

from service.page.charts import PALETTE, base_options, chart, hide_legend
from service.page.deletion import ask_and_delete
from service.page.elements import (
    Fact,
    attempt,
    column,
    confirm,
    empty_state,
    facts,
    local_time,
    paged_table,
    section_heading,
    state_badge,
    table,
)
from service.page.forms.catalog import is_imported
from service.page.frame import heading, view
from service.page.paths import viewer_url
from service.page.texts import count, duration, percent, short_digest
from service.page.viewer import ApiProblem, Document, ViewerApi, resource
from service.units import size

PAGE_ROWS = 100
_COLUMNS = (
    column("key", "Key"),
    column("split", "Split"),
    column("rows", "Rows", align="right"),
    column("views", "Views", align="right"),
    column("encoding", "Encoding"),
    column("size", "Size", align="right"),
    column("state", "State", kind="state"),
    column("pinned", "Pinned"),
    column("last_used_at", "Last used", kind="time"),
)
_STATISTICS = {
    "max": "Largest logit",
    "sharpness": "Sharpness (log-sum-exp)",
    "std": "Standard deviation of the logits",
    "confidence": "Confidence (largest probability)",
}
_FORMATS = {"npz": "npz", "parquet": "Parquet", "zarr": "Zarr, a zip"}


@view("/caches", "Caches")
async def caches(api: ViewerApi, after: str = "") -> None:
    """Build the list of caches."""
    with ui.row():
        ui.link("Import logits from elsewhere", "/caches/import").classes("button-link")
    page = await api.get("/v1/caches", {"limit": PAGE_ROWS, "after": after})
    if not page["data"]:
        empty_state("No teacher's logits are cached yet: a job computes them once.", "Make a job", url="/new")
        return
    quota = f" of {size(page['quota_bytes'])} that they may take" if page["quota_bytes"] else ""
    ui.label(f"All caches take {size(page['total_bytes'])}{quota}.")
    paged_table(_COLUMNS, page, _row, title="Caches", more=("More caches", "/caches"))


def _row(cache: Document) -> Document:
    spec = cache["spec"] or {}
    return {
        "id": cache["key"],
        "key": short_digest(cache["key"]),
        "split": spec.get("split", ""),
        "rows": count(cache["rows_committed"]),
        "views": spec.get("views", ""),
        "encoding": f"{spec.get('encoding', '')} {spec.get('dtype', '')}",
        "size": size(cache["size_bytes"]),
        "state": cache["state"],
        "pinned": "pinned" if cache["pinned"] else "",
        "last_used_at": cache["last_used_at"],
        "url": f"/caches/{cache['key']}",
    }


@view("/caches/{key}", "Cache")
async def cache(api: ViewerApi, key: str, dataset: str = "") -> None:
    """Build the view of one cache; ``dataset`` is what its logits were just imported for."""
    shown = await api.get(resource("caches", key))
    spec = shown["spec"] or {}
    heading(f"Cache {short_digest(key)}")
    with ui.row().classes("items-center"):
        state_badge(shown["state"])
        if is_imported(shown):
            url = f"/new?{urlencode({'cache': key, 'dataset': dataset})}"
            ui.button("New job with it", icon="add_circle", on_click=lambda: ui.navigate.to(url)).props("no-caps")
        _actions(api, shown)
    if shown["problem"]:
        ui.label(str(shown["problem"])).classes("problem")
    with facts() as fact:
        fact("Key", shown["key"])
        if is_imported(shown):
            _import_facts(fact, shown["provenance"]["imported"])
        else:
            fact("Teacher", short_digest(spec.get("teacher_sha256", "")))
        fact("Dataset split", f"{spec.get('split', '')} ({short_digest(spec.get('dataset_fingerprint', ''))})")
        fact("Rows", f"{count(shown['rows_committed'])} of {count(spec.get('samples', 0) * spec.get('views', 1))}")
        fact("Classes, views", f"{spec.get('classes')}, {spec.get('views')}")
        fact("Stored as", f"{spec.get('encoding')} {spec.get('dtype')}, {size(shown['size_bytes'])}")
        fact("Created", lambda: local_time(shown["created_at"]))
        fact("Last used", lambda: local_time(shown["last_used_at"]))
        if shown["state"] == "complete":
            fact("Download", lambda: _downloads(key))
    if shown.get("use"):
        _use(shown["use"])
    if spec.get("dataset_fingerprint"):
        ui.link("Pictures of this split, and its views", f"/datasets/{spec['dataset_fingerprint']}?cache={key}")
    await _statistics(api, key)


def _import_facts(fact: Fact, imported: Document) -> None:
    """Facts of logits that were imported: where they come from, and what was found about them."""
    fact("Teacher", f"none: imported logits, {imported.get('source') or 'of which nobody said whence'}")
    fact("Rows matched", {"by_id": "by sample ids", "in_order": "by their order"}.get(imported.get("rows", ""), "–"))
    fact("Accuracy", f"{percent(imported.get('accuracy'))} of some hundred labelled samples, of the worst view")
    for name, label in (("accepted", "Accepted"), ("warnings", "Warning")):
        for text in imported.get(name) or ():
            fact(label, str(text))


def _downloads(key: str) -> None:
    """Links to the cache as one file in each of the formats of an export."""
    with ui.element("div").classes("links"):
        for format, name in _FORMATS.items():
            ui.link(name, viewer_url(f"/v1/caches/{key}/export?format={format}"))


def _actions(api: ViewerApi, shown: Document) -> None:
    key, path = shown["key"], f"/v1/caches/{shown['key']}"

    async def verify() -> None:
        ui.notify("Every block is being read and checked ...")
        try:
            found = await api.post(f"{path}/verify")
        except ApiProblem as problem:
            ui.notify(str(problem), type="negative", multi_line=True)
            return
        if found["ok"]:
            checked = f"{count(found['blocks_checked'])} blocks, {count(found['rows_checked'])} rows"
            ui.notify(f"All is as it was written: {checked}", type="positive")
        else:
            ui.notify("; ".join(found["problems"][:5]), type="negative", multi_line=True, timeout=15000)

    async def toggle_pin() -> None:
        if shown["pinned"] and not await confirm("Unpin the cache?", "It may be evicted and deleted again.", "Unpin"):
            return
        change = api.delete(f"{path}/pin") if shown["pinned"] else api.post(f"{path}/pin")
        if await attempt(change):
            ui.navigate.reload()

    async def delete() -> None:
        again = "A job that needs these logits runs the teacher again"
        also = "They were imported: nothing here can make them anew" if is_imported(shown) else again
        await ask_and_delete(api, path, f"the cache {short_digest(key)}", also=f"{also}.", leads_to="/caches")

    ui.button("Verify", icon="fact_check", on_click=verify).props("no-caps outline")
    ui.button("Unpin" if shown["pinned"] else "Pin", icon="push_pin", on_click=toggle_pin).props("no-caps outline")
    ui.button("Delete", icon="delete", on_click=delete, color="negative").props("no-caps outline")


def _use(use: Document) -> None:
    section_heading("What reuse has saved")
    with facts() as fact:
        fact("Teacher forwards", f"{count(use['forwards_run'])} run, {count(use['forwards_needed'])} without the cache")
        fact("Forwards saved", count(use["forwards_saved"]))
        if use["rows_per_s"]:
            fact("Rate measured", f"{use['rows_per_s']:,.0f} rows/s: {use['measured']}")
            fact("Time saved", duration(use["seconds_saved"]))
        else:
            fact("Time saved", "unknown: no job has measured the teacher's rate on these rows")
        if use["break_even_epochs"] is not None:
            fact("Break-even", f"after {use['break_even_epochs']:.1f} epochs of one run")
    if use["jobs"]:
        columns = (column("name", "Job"), column("state", "State", kind="state"), column("forwards", "Forwards"))
        rows = [
            {**job, "name": job["name"] or job["id"], "forwards": count(job["forwards"]), "url": f"/jobs/{job['id']}"}
            for job in use["jobs"]
        ]
        table(columns, rows, title="Jobs that use this cache")


async def _statistics(api: ViewerApi, key: str) -> None:
    """Histograms of the teacher's statistics over the rows of view 0."""
    try:
        found = await api.get(f"/v1/caches/{key}/statistics")
    except ApiProblem as problem:
        ui.label(f"There are no statistics: {problem}").classes("muted")
        return
    section_heading(f"The teacher's logits, {count(found['rows'])} rows of view {found['view']}")
    with ui.element("div").classes("cards"):
        for name, title in _STATISTICS.items():
            statistic = found["statistics"].get(name)
            if statistic:
                _histogram(title, statistic)


def _histogram(title: str, statistic: Document) -> None:
    edges, counts = statistic["histogram"]["edges"], statistic["histogram"]["counts"]
    middles = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
    options = base_options(title, x=title, y="rows", zoom=False)
    hide_legend(options)
    bar = {"type": "bar", "barWidth": "96%", "color": PALETTE[0], "data": list(zip(middles, counts, strict=False))}
    options["series"] = [bar]
    total = sum(counts) or 1
    top = max(range(len(counts)), key=counts.__getitem__, default=0)
    summary = f"{title}: mean {statistic['mean']:.3g}, standard deviation {statistic['std']:.3g}"
    with ui.element("div"):
        ui.label(f"{summary}; {percent(counts[top] / total)} of rows in the fullest bin.").classes("muted")
        chart(options, summary)
