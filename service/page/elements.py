"""Elements that all views share: problems, empty states, states, times, confirmations, polls, tables, code to copy.

Text of users (names, notes, messages) is given to labels, tables and ``ui.code`` only, which show markup as text.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from nicegui import ui

from service.page.paths import LOGIN_PATH
from service.page.viewer import LIST_MAX, ApiProblem, Document

# Of states: colour-blind-safe colour (Okabe and Ito), and an icon that says the same without colour.
STATES: Mapping[str, tuple[str, str]] = {
    "queued": ("grey-7", "schedule"),
    "running": ("primary", "play_circle"),
    "pausing": ("grey-7", "pause_circle"),
    "paused": ("grey-7", "pause_circle"),
    "cancelling": ("grey-7", "cancel"),
    "cancelled": ("grey-7", "cancel"),
    "lost": ("warning", "sync_problem"),
    "succeeded": ("positive", "check_circle"),
    "failed": ("negative", "error"),
    # Of caches.
    "complete": ("positive", "check_circle"),
    "partial": ("grey-7", "hourglass_bottom"),
    "corrupt": ("negative", "error"),
}
_UNAUTHORIZED = 401
T = TypeVar("T")
Fact = Callable[[str, str | Callable[[], object]], None]


def set_props(element: ui.element, **props: object) -> None:
    """Set attributes to texts that may be a user's: in a string of props, quotes in them would add attributes."""
    for name, value in props.items():
        element.props[name.replace("_", "-")] = value
    element.update()


def problem_card(problem: ApiProblem) -> None:
    """Show a problem of the API: title, detail, fields that are wrong."""
    with ui.element("section").classes("problem").props("role=alert"):
        ui.label(str(problem.document.get("title") or f"HTTP {problem.status}")).classes("problem-title")
        ui.label(str(problem))
        for field in problem.fields:
            ui.label(f"{field.get('pointer', '')}: {field.get('detail', '')}")


def notify_problem(problem: ApiProblem) -> None:
    """Show a problem of an action for a while; one of a missing or revoked key leads to the log-in."""
    if problem.status == _UNAUTHORIZED:
        ui.navigate.to(LOGIN_PATH)
        return
    fields = "; ".join(f"{field.get('pointer', '')}: {field.get('detail', '')}" for field in problem.fields)
    ui.notify(
        f"{problem.document.get('title', '')}: {fields or problem}", type="negative", multi_line=True, timeout=9000
    )


def refuse(place: ui.element, problem: ApiProblem) -> None:
    """Show a problem of a form in a place of it, until that is cleared; one of a missing or revoked key leads away."""
    if problem.status == _UNAUTHORIZED:
        notify_problem(problem)
        return
    with place:
        problem_card(problem)


async def attempt(action: Awaitable[Any], done: str = "") -> bool:
    """Run an action of the viewer; say that it is done, or why not. Returns whether it is done."""
    try:
        await action
    except ApiProblem as problem:
        notify_problem(problem)
        return False
    if done:
        ui.notify(done, type="positive")
    return True


def poll(interval_s: float, update: Callable[[], Awaitable[None]]) -> ui.timer:
    """Call ``update`` again and again while the view is open; a problem is shown once, until it is over."""
    shown: list[str] = []

    async def update_once() -> None:
        try:
            await update()
        except ApiProblem as problem:
            if str(problem) not in shown:
                shown[:] = [str(problem)]
                notify_problem(problem)
        else:
            shown.clear()

    return ui.timer(interval_s, update_once, immediate=False)


class Newest:
    """Order guard of what draws a part of a view: of several readings at once, only the newest is drawn.

    Args:
        place: element that is drawn to; once it is deleted, nothing is.
    """

    def __init__(self, place: ui.element) -> None:
        self._place = place
        self._begun = 0

    async def of(self, reading: Awaitable[T]) -> T | None:
        """Result of a reading; None where a newer one has begun meanwhile. Raises what the newest one raises."""
        self._begun += 1
        mine = self._begun
        try:
            found = await reading
        except ApiProblem:
            if mine == self._begun:
                raise
            return None
        return found if mine == self._begun and not self._place.is_deleted else None


async def confirm(title: str, text: str, action: str) -> bool:
    """Ask before something that cannot be undone. Returns whether the viewer has agreed."""
    # Outside of what has asked: a list may be rebuilt meanwhile, and a dialog goes with its parent.
    with ui.context.client.content, ui.dialog() as dialog, ui.card().props("role=alertdialog"):
        ui.label(title).classes("section-heading")
        ui.label(text)
        with ui.row():
            ui.button("Cancel", on_click=lambda: dialog.submit(False)).props("flat autofocus no-caps")
            ui.button(action, on_click=lambda: dialog.submit(True), color="negative").props("no-caps")
    agreed = bool(await dialog)
    if not dialog.is_deleted:
        dialog.delete()
    return agreed


def empty_state(text: str, next_step: str, *, url: str = "", code: str = "") -> None:
    """Say that there is nothing to show yet, and the next step: a link, or a command to copy."""
    with ui.element("section").classes("empty"):
        ui.label(text).classes("empty-text")
        if url:
            ui.button(next_step, on_click=lambda: ui.navigate.to(url)).props("no-caps")
        else:
            ui.label(next_step)
        if code:
            copyable(code)


def copyable(text: str, language: str = "bash") -> ui.code:
    """Show text to copy, such as a command."""
    shown = ui.code(text, language=language).classes("copyable")
    set_props(shown.copy_button, aria_label="Copy")
    # It scrolls, so the keyboard has to reach it.
    set_props(shown.markdown, tabindex=0)
    return shown


def more_note(what: str, has_more: bool, *, order: str = "newest") -> None:
    """Say that a choice has no more than the newest (or first, by ``order``) of a longer list."""
    if has_more:
        ui.label(f"The {order} {LIST_MAX:,} {what}: there are more.").classes("muted")


def state_badge(state: str) -> ui.chip:
    """State of a job or run, as icon, word and colour."""
    colour, icon = STATES.get(state, ("grey-7", "help"))
    return ui.chip(state, icon=icon, color=colour, text_color="white").props("dense square").classes("state")


def set_state(badge: ui.chip, state: str) -> None:
    """Show another state in a badge."""
    colour, icon = STATES.get(state, ("grey-7", "help"))
    badge.set_text(state)
    badge.props(f"icon={icon} color={colour}")


def local_time(at: str | None) -> None:
    """Instant (ISO 8601, UTC) as the viewer's own clock has it."""
    # page.js writes its text, in the zone and the language of the browser.
    ui.element("time").props(f"datetime={at}" if at else "").classes("local-time")


def section_heading(text: str) -> None:
    """Heading of a part of a view."""
    ui.label(text).classes("section-heading").props("role=heading aria-level=2")


def column(name: str, label: str, **options: object) -> dict[str, Any]:
    """Column of a ``table``: field ``name`` of its rows."""
    return {"name": name, "label": label, "field": name, "align": "left", **options}


def table(
    columns: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], *, key: str = "id", title: str
) -> ui.table:
    """Table of rows; at phone width it scrolls sideways inside itself.

    A row may have ``url``: the first column links to it. A column with ``kind`` "time" shows the viewer's clock, one
    with "state" a badge.

    Args:
        title: for screen readers.
    """
    shown = ui.table(columns=list(columns), rows=list(rows), row_key=key).classes("page-table")
    shown.props("flat dense hide-pagination")
    set_props(shown, aria_label=title)
    first = columns[0]["name"]
    shown.add_slot(
        f"body-cell-{first}",
        '<q-td :props="props"><a v-if="props.row.url" :href="props.row.url" class="nicegui-link">{{ props.value }}</a>'
        "<span v-else>{{ props.value }}</span></q-td>",
    )
    # It scrolls sideways, so the keyboard has to reach it.
    shown.props("tabindex=0 role=region")
    for each in columns:
        if each.get("kind") == "time":
            shown.add_slot(
                f"body-cell-{each['name']}",
                '<q-td :props="props"><time class="local-time" :datetime="props.value"></time></q-td>',
            )
        elif each.get("kind") == "state":
            colours = ", ".join(f"{state!r}: {style[0]!r}" for state, style in STATES.items())
            icons = ", ".join(f"{state!r}: {style[1]!r}" for state, style in STATES.items())
            shown.add_slot(
                f"body-cell-{each['name']}",
                '<q-td :props="props"><q-chip dense square class="state" text-color="white"'
                f" :color=\"({{{colours}}})[props.value] || 'grey-7'\""
                f" :icon=\"({{{icons}}})[props.value] || 'help'\">{{{{ props.value }}}}</q-chip></q-td>",
            )
    return shown


def paged_table(
    columns: Sequence[dict[str, Any]],
    page: Document,
    row: Callable[[Document], Document],
    *,
    title: str,
    more: tuple[str, str],
) -> None:
    """Table of a page of a list of the API.

    Args:
        row: of the table, by an item of the list.
        more: label and address of the view, for a link to the page that follows.
    """
    table(columns, [row(each) for each in page["data"]], title=title)
    if page["has_more"]:
        ui.link(more[0], f"{more[1]}?after={page['last_id']}")


@contextmanager
def facts() -> Iterator[Fact]:
    """List of named facts; call what it yields with a name, and a text or a function that builds the value."""
    with ui.element("dl").classes("facts") as shown:

        def fact(name: str, value: str | Callable[[], object]) -> None:
            with shown:
                with ui.element("dt"):
                    ui.label(name)
                with ui.element("dd"):
                    if isinstance(value, str):
                        ui.label(value)
                    else:
                        value()

        yield fact
