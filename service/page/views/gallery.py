"""Gallery of a run: the pictures that its temperatures and mistakes are about, each with both softmaxes at any T."""

import math
from collections.abc import Sequence
from urllib.parse import urlencode

from nicegui import ui

from service.page.elements import empty_state, problem_card, section_heading, set_props
from service.page.frame import heading, view
from service.page.paths import viewer_url
from service.page.texts import count, percent
from service.page.viewer import ApiProblem, Document, Params, ViewerApi, resource

_ORDERS = {
    "disagreement": "teacher and student disagree most",
    "teacher_mistakes": "the teacher's confident mistakes",
    "highest_temperature": "highest temperature",
    "lowest_temperature": "lowest temperature",
}
_SPLITS = {"test": "test", "validation": "validation", "train": "train"}
_SHOWN_CLASSES = 4
_T_MAX = 20.0


@view("/gallery", "Gallery")
async def gallery(api: ViewerApi, run: str = "", by: str = "", split: str = "test") -> None:
    """Build the gallery of a run; it needs the address of one."""
    if not run:
        empty_state("The gallery shows the pictures of a run.", "Choose a job", url="/jobs")
        return
    shown = await api.get(resource("runs", run))
    heading(f"Gallery of {shown['name']}")
    ui.link("The job of this run", f"/jobs/{shown['job_id']}")
    order = by if by in _ORDERS else "disagreement"
    given = {"run": run, "by": order, "split": split if split in _SPLITS else "test"}

    def lead(name: str, value: str) -> None:
        ui.navigate.to(f"/gallery?{urlencode({**given, name: value})}")

    with ui.element("div").classes("filters"):
        ui.select(_ORDERS, value=order, label="Order", on_change=lambda event: lead("by", event.value))
        ui.select(_SPLITS, value=given["split"], label="Split", on_change=lambda event: lead("split", event.value))
    query: Params = {"by": order, "split": given["split"], "limit": 24}
    try:
        found = await api.get(f"/v1/runs/{shown['id']}/gallery", query)
    except ApiProblem as problem:
        problem_card(problem)
        return
    _pictures(found)


def _pictures(found: Document) -> None:
    ui.label(f"{found['measure']}; the first of {count(found['rows'])} rows of {found['split']}.")
    for note in found.get("notes") or []:
        ui.label(note).classes("muted")
    if not found["data"]:
        empty_state("No row is like that.", "Choose another order.")
        return
    section_heading("Both softmaxes at a temperature")
    with ui.row().classes("wide slider-row"):
        label = ui.label("T = 1.0").classes("mono")
        slider = ui.slider(min=0.5, max=_T_MAX, step=0.5, value=1.0).classes("grow").props("label")
        set_props(slider, aria_label="Temperature of both softmaxes")
    place = ui.element("div").classes("gallery")

    def draw(temperature: float) -> None:
        label.set_text(f"T = {temperature:.1f}")
        place.clear()
        with place:
            for row in found["data"]:
                _card(found, row, temperature)

    slider.on("change", lambda: draw(float(slider.value)))
    draw(1.0)


def _card(found: Document, row: Document, temperature: float) -> None:
    names = found["class_names"] or [str(index) for index in range(found["classes"])]
    shown = "no label" if row["label"] is None else names[row["label"]]
    with ui.element("section").classes("gallery-card"):
        if row["picture"]:
            image = ui.element("img").classes("thumbnail")
            set_props(image, src=viewer_url(row["picture"]), alt=f"row {row['row']}: {shown}", loading="lazy")
        ui.label(f"{shown} (row {row['row']})").classes("method-name")
        ui.label(f"{row['value']:.4g}" + _temperature(row)).classes("muted")
        for network in ("teacher", "student"):
            answer = row.get(network)
            if answer:
                _softmax(network, softmax(answer["logits"], temperature), names, row["label"])


def _temperature(row: Document) -> str:
    given = (row.get("temperature") or {}).get("teacher")
    return f", T_teacher {given['paper']:.3g}" if given and given.get("paper") is not None else ""


def _softmax(network: str, shares: Sequence[float], names: Sequence[str], label: int | None) -> None:
    """Bars of the likeliest classes; the label's is marked, if there is one."""
    ui.label(network.capitalize()).classes("caption")
    likeliest = sorted(range(len(shares)), key=lambda index: -shares[index])[:_SHOWN_CLASSES]
    with ui.element("ul").classes("softmax"):
        for index in likeliest:
            with ui.element("li").classes("label-class" if index == label else ""):
                name = f"{names[index]} ✓" if index == label else names[index]
                ui.label(name).classes("caption softmax-name")
                ui.element("span").classes("bar").style(f"width: {100 * shares[index]:.1f}%")
                ui.label(percent(shares[index])).classes("caption")


def softmax(logits: Sequence[float], temperature: float) -> list[float]:
    """Softmax of logits divided by a temperature."""
    largest = max(logits)
    powers = [math.exp((logit - largest) / temperature) for logit in logits]
    total = sum(powers)
    return [power / total for power in powers]
