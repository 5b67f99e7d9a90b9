"""List of the events of a job or run, newest first; new ones come to its top by themselves."""

import json
from collections.abc import Awaitable, Callable, Mapping

from nicegui import ui

from service.page.elements import column, empty_state, table
from service.page.job.words import duration, percent
from service.page.viewer import Document, ViewerApi
from workers.texts import shortened

PAGE_EVENTS = 50
# New ones are shown on top of these; older pages are a link away.
SHOWN_MAX = 200
_NEWEST = 2**63 - 1
_CHARS = 400
_COLUMNS = (
    column("at", "When", kind="time"),
    column("type", "Event"),
    column("run", "Run"),
    column("words", "Says"),
)


class EventList:
    """Events of a job or run.

    Args:
        path: of the job or run in the API.
        before: number of an event; events earlier than it are listed, and stay as they are. 0 lists the newest.
        names: of runs, by id.
    """

    def __init__(self, api: ViewerApi, path: str, before: int, names: Mapping[str, str]) -> None:
        self._api = api
        self._path = path
        self._before = before
        self._names = names
        self._newest = 0

    async def build(self, url: str) -> None:
        """Build the list; ``url`` is the view's, to which the number of an event is added. Raises Problem."""
        found = await self._read(0, self._before or _NEWEST)
        self._newest = found["data"][0]["seq"] if found["data"] else 0
        if not found["data"]:
            empty_state("There is no event yet.", "Events appear here by themselves once an engine takes the job up.")
        self.table = table(_COLUMNS, [self._row(event) for event in found["data"]], title="Events, newest first")
        self.table.classes("events-table")
        self.table.set_visibility(bool(found["data"]))
        with ui.element("div").classes("links"):
            if self._before:
                ui.link("Newest events", url)
            if found["has_more"]:
                ui.link("Older events", f"{url}&before={found['last_id']}")

    async def follow(self, _: bool) -> None:
        """Put new events on top. Raises Problem."""
        if self._before:
            return
        found = await newest_events(self._read, self._newest)
        if found and not self.table.is_deleted:
            self._newest = found[0]["seq"]
            self.table.set_visibility(True)
            self.table.rows = [*map(self._row, found), *self.table.rows][:SHOWN_MAX]

    async def _read(self, after: int, before: int) -> Document:
        params = {"after": after, "before": before, "limit": PAGE_EVENTS}
        return await self._api.get(f"{self._path}/events", params)

    def _row(self, event: Document) -> Document:
        run = event["run_id"]
        return {
            "id": event["seq"],
            "at": event["at"],
            "type": event["type"],
            "run": self._names.get(run, run) if run else "",
            "words": shortened(event_words(event["type"], event["data"] or {}), _CHARS),
        }


async def newest_events(read: Callable[[int, int], Awaitable[Document]], after: int) -> list[Document]:
    """Events after a number, newest first, page by page: all, or as many as are shown at most.

    Args:
        read: a page of the events between two numbers, newest first.
    """
    found: list[Document] = []
    before, has_more = _NEWEST, True
    while has_more and len(found) < SHOWN_MAX:
        page = await read(after, before)
        found += page["data"]
        before, has_more = int(page["last_id"] or 0), page["has_more"]
    return found


def event_words(kind: str, data: Document) -> str:
    """Sentence about an event; of a type that is not known here, its data as JSON."""
    match kind, data:
        case "state", {"state": state}:
            problem = data.get("error") or data.get("set_aside") or {}
            return ": ".join(part for part in (str(state), str(problem.get("message") or "")) if part)
        case "log", {"message": message}:
            return f"{data.get('level', 'info')}: {message}"
        case "stage", {"stage": stage}:
            return str(stage)
        case "epoch", {"epoch": epoch, "epochs": epochs, "metrics": dict(metrics)}:
            return _epoch_words(epoch, epochs, metrics)
        case "cache_ready", {"split": split, "rows_total": rows, "rows_inferred": inferred, "seconds": seconds}:
            how = f"{inferred:,} of them inferred in {duration(seconds)}" if inferred else "all from the cache"
            return f"{split}: {rows:,} rows, {how}"
        case "finished", {"result": {"last": dict(last), "epochs": epochs}}:
            return f"trained and evaluated: {_epoch_words(epochs, epochs, last)}"
        case "dataset_ready", {"split": split, "samples": samples, "classes": classes}:
            return f"{split}: {samples:,} pictures of {classes} classes"
    return json.dumps(data, ensure_ascii=False)


def _epoch_words(epoch: int, epochs: int, metrics: Document) -> str:
    parts = [f"{epoch} of {epochs}"]
    for name, label in (("validation_top1", "validation top-1"), ("top1", "test top-1")):
        if metrics.get(name) is not None:
            parts.append(f"{label} {percent(metrics[name])}")
    if metrics.get("train_loss") is not None:
        parts.append(f"loss {metrics['train_loss']:.3f}")
    return ", ".join(parts)
