"""Datasets: counts per class, sample pictures, and the views of a picture as teacher and student see them."""

from nicegui import ui

from service.page.charts import bars, chart
from service.page.deletion import ask_and_delete
from service.page.elements import column, empty_state, facts, more_note, paged_table, section_heading, set_props, table
from service.page.frame import heading, view
from service.page.paths import viewer_url
from service.page.texts import count, short_digest
from service.page.viewer import ApiProblem, Document, ViewerApi, resource

PAGE_ROWS = 100
_PICTURES = 24
_VIEWS = 8
_REGISTER = "retort datasets add NAME --kind folder --path FOLDER"
_COLUMNS = (
    column("name", "Name"),
    column("kind", "Kind"),
    column("classes", "Classes", align="right"),
    column("samples", "Pictures"),
    column("created_at", "Registered", kind="time"),
)
_SPLIT_COLUMNS = (
    column("split", "Split"),
    column("fingerprint", "Fingerprint"),
    column("samples", "Pictures", align="right"),
    column("classes", "Classes", align="right"),
)


@view("/datasets", "Datasets")
async def datasets(api: ViewerApi, after: str = "") -> None:
    """Build the list of registered datasets, and of the splits that caches were made of."""
    page = await api.get("/v1/datasets", {"limit": PAGE_ROWS, "after": after})
    if page["data"]:
        paged_table(_COLUMNS, page, _row, title="Datasets", more=("More datasets", "/datasets"))
    else:
        empty_state(
            "No dataset has a name yet.",
            "A job may describe its own. To name one below RETORT_DATA_ROOT:",
            code=_REGISTER,
        )
    await _cached_splits(api)


def _row(dataset: Document) -> Document:
    samples = dataset["samples"] or {}
    return {
        "id": dataset["id"],
        "name": dataset["name"],
        "kind": dataset["spec"]["kind"],
        "classes": dataset["classes"] or "–",
        "samples": ", ".join(f"{split} {count(number)}" for split, number in samples.items()) or "–",
        "created_at": dataset["created_at"],
        "url": f"/datasets/{dataset['id']}",
    }


async def _cached_splits(api: ViewerApi) -> None:
    caches, has_more = await api.list("/v1/caches")
    found = {}
    for cache in caches:
        spec = cache["spec"]
        if spec:
            fingerprint = spec["dataset_fingerprint"]
            found[fingerprint] = {
                "id": fingerprint,
                "split": spec["split"],
                "fingerprint": short_digest(fingerprint),
                "samples": count(spec["samples"]),
                "classes": spec["classes"],
                "url": f"/datasets/{fingerprint}?cache={cache['key']}",
            }
    if found:
        section_heading("Splits that jobs have used")
        table(_SPLIT_COLUMNS, list(found.values()), title="Splits that jobs have used")
        more_note("caches are looked at", has_more, order="first")


@view("/datasets/{dataset_id}", "Dataset")
async def dataset(
    api: ViewerApi, dataset_id: str, split: str = "", label: str = "", after: str = "", cache: str = ""
) -> None:
    """Build the view of a registered dataset, or of one split by its fingerprint."""
    if dataset_id.startswith("ds_"):
        await _registered(api, dataset_id)
    else:
        heading(f"Dataset split {short_digest(dataset_id)}")
    try:
        splits = (await api.get(f"{resource('datasets', dataset_id)}/splits"))["data"]
    except ApiProblem as problem:
        empty_state(str(problem), "A job that uses it decodes it first.", url="/new")
        return
    chosen = next((each for each in splits if each["split"] == split), splits[0] if splits else None)
    if chosen is None:
        empty_state("It was not decoded yet.", "A job that uses it decodes it first.", url="/new")
        return
    base = f"/datasets/{dataset_id}?cache={cache}"
    if len(splits) > 1:
        with ui.row():
            for each in splits:
                ui.link(f"{each['split']} ({count(each['samples'])})", f"{base}&split={each['split']}")
    _class_counts(chosen)
    await _pictures(api, chosen, f"{base}&split={chosen['split']}", label=label, after=after)
    if cache:
        await _views(api, cache, chosen)


async def _registered(api: ViewerApi, dataset_id: str) -> None:
    shown = await api.get(resource("datasets", dataset_id))
    heading(shown["name"])

    async def delete() -> None:
        also = "Its name goes, and its decoded copy if nothing else has that; your own files stay."
        path, what = f"/v1/datasets/{shown['id']}", f"the dataset {shown['name']}"
        await ask_and_delete(api, path, what, also=also, leads_to="/datasets")

    with ui.row():
        ui.button(
            "New job with it", icon="add_circle", on_click=lambda: ui.navigate.to(f"/new?dataset={dataset_id}")
        ).props("no-caps")
        ui.button("Delete", icon="delete", on_click=delete, color="negative").props("no-caps outline")
    with facts() as fact:
        fact("Id", shown["id"])
        fact("Description", ", ".join(f"{name} {value}" for name, value in shown["spec"].items() if value is not None))


def _class_counts(split: Document) -> None:
    classes = split["classes"]
    section_heading(f"{count(split['samples'])} pictures of {len(classes)} classes in {split['split']}")
    rows = [(each["name"] or str(each["label"]), each["samples"]) for each in classes]
    if unlabelled := split.get("unlabelled"):
        rows.append(("no label", unlabelled))
    options = bars("pictures by class", rows, y="pictures")
    chart(options, f"pictures by class of the split {split['split']}")


async def _pictures(api: ViewerApi, split: Document, base: str, *, label: str, after: str) -> None:
    names = {str(each["label"]): each["name"] or str(each["label"]) for each in split["classes"]}
    if split.get("unlabelled"):
        names["-1"] = "no label"
    section_heading("Pictures")
    ui.select(
        {"": "all classes", **names},
        value=label if label in names else "",
        label="Class",
        on_change=lambda event: ui.navigate.to(f"{base}&label={event.value}"),
    ).classes("select")
    page = await api.get(
        f"/v1/datasets/{split['fingerprint']}/pictures", {"class": label, "limit": _PICTURES, "after": after}
    )
    with ui.element("ul").classes("pictures"):
        for picture in page["data"]:
            name = picture["class_name"] or ("no label" if picture["label"] is None else str(picture["label"]))
            with ui.element("li"):
                thumbnail(picture["picture"], f"row {picture['row']}: {name}")
                ui.label(name).classes("caption")
    if page["has_more"]:
        ui.link("More pictures", f"{base}&label={label}&after={page['last_id']}")


async def _views(api: ViewerApi, key: str, split: Document) -> None:
    spec = (await api.get(resource("caches", key)))["spec"]
    if not spec or spec["dataset_fingerprint"] != split["fingerprint"]:
        return
    section_heading("Views of the first pictures, as the teacher and as the student see them")
    shown = min(spec["views"], _VIEWS)
    ui.label(f"{shown} of {spec['views']} cached views: {spec['augmentation'].get('recipe', 'none')}.").classes("muted")
    for row in range(min(3, spec["samples"])):
        with ui.element("ul").classes("pictures"):
            for number in range(shown):
                for network in ("teacher", "student"):
                    with ui.element("li"):
                        path = f"/v1/caches/{key}/views/{row}.png?view={number}&network={network}"
                        thumbnail(path, f"row {row}, view {number}, {network}")
                        ui.label(f"view {number}, {network}").classes("caption")


def thumbnail(api_path: str, description: str) -> None:
    """Picture that the API has at a path, enlarged where it is small; ``description`` is read by screen readers."""
    shown = ui.element("img").classes("thumbnail")
    set_props(shown, src=viewer_url(api_path), alt=description, loading="lazy")
