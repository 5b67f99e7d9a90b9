"""A visitor of the page: Chromium, what went wrong in it, and how often its mouse was pressed."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import ConsoleMessage, Locator, Page, Request, sync_playwright

from tests.support.processes import Processes

Role = Literal["button", "link", "tab", "option", "combobox", "checkbox"]
CHROMIUM = "/usr/bin/chromium"
# It looks for nobody outside of this machine, and needs neither a sandbox of its own nor a GPU.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# An upload may be tried in a process that loads torch, on a machine that others load.
TIMEOUT_MS = 120_000
# That a newcomer's task may take.
CLICKS = 5
_SETTLED = """() => window.socket?.connected
    && [...document.querySelectorAll('.chart')].every(chart => !chart.checkVisibility() || chart.querySelector('svg'))
    && [...document.images].every(image => image.complete || image.loading === 'lazy')
    && document.getAnimations().every(each => each.effect.getComputedTiming().iterations === Infinity)"""
# Wider than the screen, and in nothing that scrolls by itself.
_WIDEST = """() => [...document.querySelectorAll('body *')]
    .filter(element => element.getBoundingClientRect().right > window.innerWidth + 1)
    .slice(0, 3).map(element => element.outerHTML.slice(0, 120))"""
# Pattern of the address that a link of another path leads to: the view may put its settings into the query at once.
# Empty of a file that it downloads, and of a link within a view.
_LEADS_TO = """link => {
    const path = new URL(link.href).pathname;
    return path.startsWith('/viewer/') || path === location.pathname ? '' : `^${location.origin}${path}([?#]|$)`;
}"""


class Visitor:
    """One browser with one page.

    Attributes:
        clicks: since the last view was opened by its address.
    """

    def __init__(self, page: Page, base_url: str) -> None:
        self.page = page
        self.base_url = base_url
        self.clicks = 0
        self._wrong: list[str] = []
        page.set_default_timeout(TIMEOUT_MS)
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self._wrong.append(f"script error: {error}"))
        page.on("request", self._see)

    def open(self, path: str, width: int = 1280) -> None:
        """Open a view, and wait until it is drawn."""
        self._wrong.clear()
        self.clicks = 0
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.goto(self.base_url + path)
        self.settle()

    def settle(self) -> None:
        """Wait until the view is there, its socket open, its charts drawn, its pictures loaded and its colours there.

        They pass from those of light to those of dark in a third of a second. What turns for ever is not waited for.
        """
        self.page.locator(".page-heading").first.wait_for()
        self.page.wait_for_function(_SETTLED)

    def click(
        self, role: Role, name: str | re.Pattern[str], *, within: Locator | None = None, leads_to: str = ""
    ) -> None:
        """Press an element of a role by its name, and wait for the view that a link names, or that is said here.

        What a button leads to comes later, by the socket: until then the view that is left answers to labels, too.

        Args:
            leads_to: pattern of the address of the view that a button leads to.
        """
        self.clicks += 1
        pressed = (within or self.page).get_by_role(role, name=name).first
        if role == "link":
            leads_to = pressed.evaluate(_LEADS_TO)
        pressed.click()
        if leads_to:
            self.page.wait_for_url(re.compile(leads_to))
            self.settle()

    def choose(self, label: str, option: str) -> None:
        """Open a choice and press an option."""
        self.clicks += 2
        self.page.get_by_role("combobox", name=label, exact=True).first.click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def choose_file(self, label: str, path: Path) -> None:
        """Press what chooses a file, and choose this one."""
        self.clicks += 1
        self.page.get_by_label(label).set_input_files(path)

    def write(self, label: str, text: str) -> None:
        """Write into a field: the keyboard reaches it, so that no click is counted.

        A view that is about to be left may have a chart of this name: only a field is waited for.
        """
        self.page.get_by_label(label).and_(self.page.locator("input, textarea")).first.fill(text)

    def faults(self) -> list[str]:
        """What went wrong since the view was opened: errors, requests to other hosts, what is wider than the screen."""
        wide = self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        if wide <= 0:
            return list(self._wrong)
        return [*self._wrong, f"{wide} pixels wider than the screen: {self.page.evaluate(_WIDEST)}"]

    def violations(self) -> list[str]:
        """Serious violations that axe-core finds in the view."""
        found = Axe().run(self.page).response["violations"]
        serious = [each for each in found if each["impact"] in ("serious", "critical")]
        return [f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in serious]

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self._wrong.append(f"console: {message.text}")

    def _see(self, request: Request) -> None:
        if not request.url.startswith((self.base_url, "data:", "blob:")):
            self._wrong.append(f"asked another host: {request.url}")


@contextmanager
def visitors(base_url: str) -> Iterator[Visitor]:
    """Browser for the tests of a module."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        page = browser.new_context(locale="en-GB", timezone_id="Europe/Berlin").new_page()
        yield Visitor(page, base_url)
        browser.close()


def started(service: Processes, visitor: Visitor, button: str = "Start the job") -> dict[str, Any]:
    """The job that a form starts, to whose view the visitor is led; it is cancelled."""
    visitor.click("button", button, leads_to="/jobs/job_")
    [job_id] = re.findall(r"job_\w+", visitor.page.url)
    job: dict[str, Any] = service.client.job(job_id)
    service.client.cancel(job_id)
    return job
