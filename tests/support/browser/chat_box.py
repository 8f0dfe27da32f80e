"""The chat box in a notebook's page, as a person uses it. Knows its labels and classes."""

import re
from dataclasses import dataclass
from typing import Any

from playwright.sync_api import Locator

from support.browser.tab import RUN_MS, Notebook

# Records when a box changes and its buttons are clicked, in milliseconds of the page's clock.
WATCH = """box => {
  const seen = window.seen = {log: [], live: [], status: [], clicks: {}};
  for (const part of ["log", "live", "status"]) {
    const note = element => seen[part].push([performance.now(), element.textContent.trim()]);
    for (const element of box.querySelectorAll(".mixoff-" + part)) {
      const watcher = new MutationObserver(records => records.forEach(() => note(element)));
      watcher.observe(element, {childList: true, characterData: true, subtree: true});
    }
  }
  box.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (button) seen.clicks[button.textContent.trim()] = performance.now();
  }, true);
}"""


@dataclass(frozen=True)
class Seen:
    """The changes of a page since `watch`: (milliseconds, text) of each."""

    log: list[tuple[float, str]]
    live: list[tuple[float, str]]
    status: list[tuple[float, str]]
    clicks: dict[str, float]

    @property
    def first_text_s(self) -> float:
        """Seconds from Send to the first text of the reply."""
        return (next(at for at, text in self.live if text) - self.clicks["Send"]) / 1000

    @property
    def stopped_s(self) -> float:
        """Seconds from Stop to the status that says that the reply has ended."""
        ended = (at for at, text in self.status if text.startswith("Stopped"))
        return (next(ended) - self.clicks["Stop"]) / 1000


class ChatBox:
    """One view of a chat box.

    Parameters
    ----------
    notebook
        The notebook that shows it.
    view
        The index of one of several views, from the notebook's top; -1 is the last.
    """

    def __init__(self, notebook: Notebook, view: int = 0) -> None:
        self.notebook = notebook
        boxes = notebook.page.locator(".mixoff-box")
        self.whole = boxes.last if view == -1 else boxes.nth(view)

    def button(self, name: str) -> Locator:
        return self.whole.locator("button", has_text=re.compile(rf"^\s*{name}$"))

    def click(self, name: str) -> None:
        self.button(name).click()

    def type(self, text: str) -> None:
        self.whole.get_by_placeholder("Message", exact=True).fill(text)

    def send(self, text: str) -> None:
        """Type and send a message, and return at once."""
        self.type(text)
        self.click("Send")

    def wait_for_text(self) -> None:
        """Return when the running reply has text."""
        self.whole.locator(".mixoff-live").filter(has_text=re.compile(r"\w")).wait_for()

    def wait_until_ready(self) -> None:
        """Return when no reply runs."""
        self.whole.locator("button:not([disabled])", has_text="Send").wait_for(timeout=RUN_MS)

    def answer(self, text: str) -> None:
        """Send a message, and return when the reply has ended."""
        before = self.replies().count()
        self.send(text)
        self.replies().nth(before).wait_for(timeout=RUN_MS)
        self.wait_until_ready()

    def replies(self) -> Locator:
        return self.whole.locator(".mixoff-log .mixoff-reply")

    def users(self) -> Locator:
        return self.whole.locator(".mixoff-log .mixoff-user")

    def status(self) -> str:
        return self.whole.locator(".mixoff-status").inner_text().strip()

    def conversation(self) -> str:
        return self.whole.locator(".mixoff-log").inner_text()

    def set_slider(self, name: str, value: int) -> None:
        """Type a number into the slider's readout, which both versions of ipywidgets have."""
        slider = self.whole.locator(".widget-hslider", has_text=name)
        readout = slider.locator(".widget-readout")
        readout.fill(str(value))
        readout.press("Enter")

    def watch(self) -> None:
        """Begin to record the box's changes, and discard earlier ones."""
        self.whole.evaluate(WATCH)

    def seen(self) -> Seen:
        """Return the box's changes since `watch`."""
        changes: dict[str, Any] = self.notebook.page.evaluate("() => window.seen")
        return Seen(**changes)
