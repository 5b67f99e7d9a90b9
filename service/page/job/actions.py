"""Actions on jobs and runs: which one a state allows, and buttons that take them through the API."""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from nicegui import ui

from service.page.deletion import ask_and_delete
from service.page.elements import attempt, confirm, notify_problem
from service.page.viewer import ApiProblem, Document, ViewerApi

Done = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Action:
    """Action on a job or run.

    Attributes:
        name: the last part of its route.
        states: in which it can be taken.
        asks: question that is asked first; none without one.
    """

    name: str
    label: str
    icon: str
    states: Collection[str]
    done: str
    asks: str = ""


ACTIONS = (
    Action(
        name="pause",
        label="Pause",
        icon="pause",
        states=("queued", "running", "lost"),
        done="Pausing: a checkpoint is saved first",
    ),
    Action(name="resume", label="Resume", icon="play_arrow", states=("paused", "pausing"), done="Resumed"),
    Action(
        name="cancel",
        label="Stop",
        icon="stop",
        states=("queued", "running", "pausing", "paused", "lost"),
        done="Stopping",
        asks="It ends within a batch and keeps its last checkpoint, from which a retry goes on.",
    ),
    Action(
        name="retry", label="Retry", icon="replay", states=("failed", "cancelled"), done="Posted again as a new job"
    ),
)


def allowed(state: str, name: str) -> bool:
    """Whether the state of a job or run allows an action."""
    return any(action.name == name and state in action.states for action in ACTIONS)


def action_buttons(api: ViewerApi, path: str, what: str, done: Done) -> Callable[[str, bool], None]:
    """Build the buttons of a job or run.

    Args:
        path: of the job or run in the API.
        what: its kind and name, for questions.
        done: called after an action.

    Returns:
        A function that shows the buttons that a state allows; its second argument is whether a retry has runs to try.
    """
    buttons: dict[str, ui.button] = {}

    async def take(action: Action) -> None:
        if action.asks and not await confirm(f"{action.label} {what}?", action.asks, action.label):
            return
        if action.name == "retry":
            await _retry(api, path)
        elif await attempt(api.post(f"{path}/{action.name}"), action.done):
            await done()

    for action in ACTIONS:
        button = ui.button(action.label, icon=action.icon, on_click=lambda _, action=action: take(action))
        button.props(f"no-caps outline dense padding='4px 10px' data-action={action.name}")
        button.set_visibility(False)
        buttons[action.name] = button

    def show(state: str, can_retry: bool) -> None:
        for action in ACTIONS:
            is_shown = can_retry if action.name == "retry" else state in action.states
            buttons[action.name].set_visibility(is_shown)

    return show


async def _retry(api: ViewerApi, path: str) -> None:
    """Post what failed or was cancelled as a new job, and lead to it."""
    try:
        made = await api.post(f"{path}/retry")
    except ApiProblem as problem:
        notify_problem(problem)
        return
    ui.navigate.to(f"/jobs/{made['id']}")


async def delete_job(api: ViewerApi, job: Document) -> None:
    """Ask, saying what it frees; delete a job and lead to the list."""
    also = f"Its {len(job['run_ids'])} runs go with their events and files; its caches stay."
    await ask_and_delete(api, f"/v1/jobs/{job['id']}", job["name"] or job["id"], also=also, leads_to="/jobs")


async def delete_run(api: ViewerApi, run: Document) -> None:
    """Ask, saying what it frees; delete a run and lead to the others of its job."""
    also = "Its events and files go; the job's other runs and the caches stay."
    leads_to = f"/jobs/{run['job_id']}?tab=runs"
    await ask_and_delete(api, f"/v1/runs/{run['id']}", f"the run {run['name']}", also=also, leads_to=leads_to)


async def toggle_pin(api: ViewerApi, job: Document, done: Done) -> None:
    """Keep a job from deletion, or let it be deleted again."""
    path = f"/v1/jobs/{job['id']}/pin"
    text = "It may be deleted again, by request and by age."
    if job["pinned"] and not await confirm("Unpin the job?", text, "Unpin"):
        return
    action = api.delete(path) if job["pinned"] else api.post(path)
    if await attempt(action, "It may be deleted again" if job["pinned"] else "It is kept from deletion"):
        await done()
