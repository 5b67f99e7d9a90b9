"""Deletion of what a view shows: what it would free, a question, and the deletion itself, all by the API."""

from nicegui import ui

from service.page.elements import attempt, confirm, notify_problem
from service.page.viewer import ApiProblem, ViewerApi
from service.units import size


async def ask_and_delete(api: ViewerApi, path: str, what: str, *, also: str, leads_to: str) -> None:
    """Say why a deletion is refused, or ask, saying what it frees; then delete and lead to a list.

    Args:
        path: in the API of what is deleted.
        what: its kind and name.
        also: sentences on what goes and what stays.
        leads_to: path of the list.
    """
    try:
        found = await api.get(f"{path}/deletion")
    except ApiProblem as problem:
        notify_problem(problem)
        return
    if found["refused"]:
        ui.notify(str(found["refused"]), type="warning", multi_line=True)
        return
    text = f"This frees {size(found['frees_bytes'])}. {also} It cannot be undone."
    if await confirm(f"Delete {what}?", text, "Delete") and await attempt(api.delete(path)):
        ui.navigate.to(leads_to)
