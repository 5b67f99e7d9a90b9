"""Finding of a check, and the runner of checks."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from service.settings import Settings

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        status: ``ok``; ``warn``: it works, but perhaps not as wanted; ``fail``: something will not work.
        found: what is the case.
        advice: what to do about it; empty where all is well.
    """

    status: Status
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Check:
    """A question with a name.

    Attributes:
        ask: anything that it raises is a failure.
        timeout_s: an answer that takes longer is one as well.
    """

    name: str
    ask: Callable[[Settings], Finding]
    timeout_s: float = 20.0


def run_checks(checks: Sequence[Check], settings: Settings) -> dict[str, Finding]:
    """The findings by name, in the order of the checks; it takes no longer than the longest time limit."""
    started_s = time.monotonic()
    answers = [_ask(check, settings) for check in checks]
    findings = {}
    for check, answer in zip(checks, answers, strict=True):
        left_s = started_s + check.timeout_s - time.monotonic()
        try:
            findings[check.name] = answer.get(timeout=max(left_s, 0.0))
        except queue.Empty:
            found = f"no answer within {check.timeout_s:g} s"
            findings[check.name] = Finding("fail", found, "look why it hangs: a network, a file system or a driver")
    return findings


def _ask(check: Check, settings: Settings) -> "queue.SimpleQueue[Finding]":
    """Asks in a thread that nobody waits for at the end: what hangs in the kernel cannot be interrupted."""
    answer: queue.SimpleQueue[Finding] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answer.put(check.ask(settings))
        except Exception as error:
            what = " ".join(str(error).split()) or type(error).__name__
            answer.put(Finding("fail", f"{type(error).__name__}: {what}", "mend what this names, then ask again"))

    threading.Thread(target=ask, name=f"doctor-{check.name}", daemon=True).start()
    return answer
