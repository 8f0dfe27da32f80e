"""A notebook in a page of JupyterLab: opened, run, evaluated, pictured. Knows nothing of chats."""

import ast
import base64
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
SWITCHES = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
STEP_MS = 20_000  # for one step on a busy machine; no test asserts it
RUN_MS = 120_000  # for cells that import torch, load a model and chat
SESSION = "window.jupyterapp?.shell.currentWidget?.sessionContext"
KERNEL = f"{SESSION}?.session?.kernel"
CELLS = "window.jupyterapp.shell.currentWidget.content"

# Evaluates a Python expression in the kernel, outside of cells: {status, value or message}.
EVALUATE = """async (expression) => {
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const question = {code: "", silent: true, user_expressions: {answer: expression}};
  const late = new Promise(end => setTimeout(() => end(null), %d));
  const reply = await Promise.race([kernel.requestExecute(question).done, late]);
  if (reply === null) return {status: "error", evalue: "the kernel doesn't answer"};
  const answer = reply.content.user_expressions?.answer ?? reply.content;
  return answer.status === "ok" ? {status: "ok", value: answer.data["text/plain"]} : answer;
}"""
ERRORS = """() => window.jupyterapp.shell.currentWidget.content.widgets
  .filter(cell => cell.model.type === "code")
  .flatMap(cell => cell.model.outputs.toJSON())
  .filter(output => output.output_type === "error")
  .map(output => `${output.ename}: ${output.evalue}`)"""
FIND = f"""text => {CELLS}.widgets.findIndex(
  cell => cell.model.type === "code" && cell.model.sharedModel.getSource().includes(text))"""
# Executes a command; `window.ran` turns true at its end, which `evaluate` would await forever.
START = """command => {
  window.ran = false;
  window.jupyterapp.commands.execute(command).finally(() => { window.ran = true });
}"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium without a window; close it with all its pages at the end."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), headless=True, args=list(SWITCHES)
        )
        try:
            yield browser
        finally:
            browser.close()


def picture(page: Page, folder: Path, name: str) -> Path:
    """Write a screenshot of the page and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (re.sub(r"[^\w.-]+", "-", name).strip("-") + ".png")
    page.screenshot(path=path, timeout=10_000)
    return path


class Notebook:
    """One notebook in one tab of the browser.

    Parameters
    ----------
    browser, address
        The browser and the server that the notebook is opened with.
    name
        The file's path below the server's root.
    """

    def __init__(self, browser: Browser, address: str, name: str) -> None:
        self.name = name
        self.dialogs: list[str] = []
        self.page: Page = browser.new_page(viewport={"width": 1200, "height": 950})
        self.page.set_default_timeout(RUN_MS)
        self.page.on("dialog", self._note_dialog)
        self.page.goto(f"{address}/doc/tree/{name}?reset")
        self.page.wait_for_selector(".jp-Notebook")
        self.wait_until_idle()  # a run before there is a kernel opens a dialog, and hangs
        self.page.set_default_timeout(STEP_MS)

    def _note_dialog(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def wait_until_idle(self) -> None:
        self.page.wait_for_function(f"() => {KERNEL}?.status === 'idle'")

    def status(self) -> str:
        """Return the kernel's status in the page: `idle`, `busy`, ..."""
        return self.page.evaluate(f"() => {KERNEL}.status")

    def start_all(self) -> None:
        """Start all cells without waiting for them."""
        self.page.evaluate(START, "notebook:run-all-cells")

    def start_cell(self, containing: str) -> None:
        """Start the code cell whose source contains the text, without waiting for it."""
        self.page.evaluate(f"text => {{ {CELLS}.activeCellIndex = ({FIND})(text) }}", containing)
        self.page.evaluate(START, "notebook:run-cell")

    def is_running(self) -> bool:
        """Return whether the last started command runs; a cell that handles clicks looks idle."""
        return not self.page.evaluate("() => window.ran")

    def wait_until_ran(self) -> None:
        """Return when the last started command has ended, with or without an error."""
        self.page.wait_for_function("() => window.ran", timeout=RUN_MS)

    def run_all(self) -> None:
        """Run all cells, and return when each has run or one has failed."""
        self.start_all()
        self.wait_until_ran()

    def run_cell(self, containing: str) -> None:
        """Run the code cell whose source contains the text, and return when it has ended."""
        self.start_cell(containing)
        self.wait_until_ran()

    def save(self) -> None:
        """Save the notebook with its outputs, and return when it is saved."""
        self.page.evaluate(START, "docmanager:save")
        self.wait_until_ran()

    def errors(self) -> list[str]:
        """Return the errors that cells show, in the notebook's order."""
        return self.page.evaluate(ERRORS)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a Python expression in the kernel, if JSON can hold it."""
        question = f"__import__('json').dumps({expression})"
        answer = self.page.evaluate(EVALUATE % STEP_MS, question)
        if answer["status"] != "ok":
            raise RuntimeError(f"{expression}: {answer.get('evalue')}")
        return json.loads(ast.literal_eval(answer["value"]))  # the repr of a str

    def first_picture(self) -> bytes:
        """Return the first PNG among the cells' outputs."""
        cells = f"{CELLS}.widgets.filter(cell => cell.model.type === 'code')"
        outputs = f"{cells}.flatMap(cell => cell.model.outputs.toJSON())"
        pictures = self.page.evaluate(f"() => {outputs}.map(o => o.data?.['image/png'] ?? '')")
        return base64.b64decode(next(filter(None, pictures)))

    def output_of(self, containing: str) -> str:
        """Return the text that the code cell with this text in its source has printed."""
        text = "output => [output.text ?? ''].flat().join('')"
        outputs = f"{CELLS}.widgets[({FIND})(text)].model.outputs.toJSON()"
        return self.page.evaluate(f"text => {outputs}.map({text}).join('')", containing)

    def wait_until(self, expression: str) -> None:
        """Return when a Python expression is true in the kernel.

        Raises
        ------
        TimeoutError
            If it isn't after the time of a step.
        """
        until = time.monotonic() + STEP_MS / 1000
        while not self.evaluate(f"bool({expression})"):
            if time.monotonic() > until:
                raise TimeoutError(f"{expression} isn't true after {STEP_MS / 1000:.0f} s")
            self.page.wait_for_timeout(20)

    def close(self) -> None:
        self.page.close()
