"""Tabs of a view; which one is open stands in the URL, and its content is built when it is opened."""

from collections.abc import Awaitable, Callable, Mapping

from nicegui import ui

from service.page.elements import problem_card
from service.page.job.url_state import UrlState
from service.page.viewer import ApiProblem

Build = Callable[[], Awaitable[None]]


async def show_tabs(url: UrlState, tabs: Mapping[str, tuple[str, Build]], left: Callable[[], None]) -> None:
    """Build tabs and the content of the one that the URL names, by its parameter ``tab``.

    Args:
        tabs: label and content by name.
        left: called before another tab's content is built.
    """
    with ui.tabs().props("dense no-caps align=left outside-arrows mobile-arrows") as row:
        for name, (label, _) in tabs.items():
            ui.tab(name, label)
    row.set_value(url.choice("tab", tabs))
    row.classes("view-tabs")
    panel = ui.element("section").classes("tab-panel").props("role=tabpanel")
    opened = [0]

    async def build(name: str) -> None:
        opened[0] += 1
        mine = opened[0]
        left()
        panel.clear()
        panel.props(f"aria-label='{tabs[name][0]}'")
        with panel, ui.element("div").classes("tab-content"):
            try:
                await tabs[name][1]()
            except ApiProblem as problem:
                if mine == opened[0]:
                    problem_card(problem)

    async def change() -> None:
        name = str(row.value)
        url.set(tab=name)
        await build(name)

    row.on_value_change(change)
    await build(url.choice("tab", tabs))
