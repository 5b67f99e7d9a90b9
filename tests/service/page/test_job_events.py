"""Events of a job as its view reads them, and the order guard of its redraws."""

import asyncio
from typing import Any

import pytest
from nicegui import Client, ui
from nicegui.page import page as nicegui_page

from service.page.elements import Newest
from service.page.job.events import PAGE_EVENTS, SHOWN_MAX, newest_events


@pytest.mark.parametrize(("last", "after"), [(0, 0), (10, 7), (130, 7), (1000, 7)])
def test_newest_events_have_no_gap_up_to_what_is_shown(last: int, after: int) -> None:
    asked = []

    async def read(after: int, before: int) -> dict[str, Any]:
        asked.append(before)
        numbers = [number for number in range(last, 0, -1) if after < number < before]
        data = [{"seq": number} for number in numbers[:PAGE_EVENTS]]
        has_more = len(numbers) > PAGE_EVENTS
        return {"data": data, "has_more": has_more, "last_id": data[-1]["seq"] if data else None}

    found = [event["seq"] for event in asyncio.run(newest_events(read, after))]
    assert found == list(range(last, after, -1))[:SHOWN_MAX]
    assert len(asked) <= SHOWN_MAX // PAGE_EVENTS


@pytest.mark.parametrize("is_deleted", [False, True])
def test_newest_reading_alone_is_drawn_and_only_while_its_place_is_there(is_deleted: bool) -> None:
    async def read(answer: int, may_end: asyncio.Event) -> int:
        await may_end.wait()
        return answer

    async def readings() -> list[int | None]:
        with Client(nicegui_page("/newest")):
            place = ui.element()
        newest, ends = Newest(place), [asyncio.Event(), asyncio.Event()]
        begun = [asyncio.create_task(newest.of(read(number, end))) for number, end in enumerate(ends)]
        await asyncio.sleep(0)
        if is_deleted:
            place.delete()
        # The one that was asked for last answers first.
        ends[1].set()
        last = await begun[1]
        ends[0].set()
        return [await begun[0], last]

    assert asyncio.run(readings()) == [None, None if is_deleted else 1]
