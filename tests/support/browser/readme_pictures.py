"""README's pictures, made from the notebooks in Chromium (`make pictures`).

The chat box is a screenshot of notebooks/2-chat.ipynb; the cache is the first figure of
notebooks/3-cache.ipynb. Nothing is retouched.
"""

import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import Browser

from support.browser.chat_box import ChatBox
from support.browser.kernels import ROOT
from support.browser.lab import jupyter_lab
from support.browser.tab import Notebook, chromium

PICTURES = ROOT / "data" / "pictures"
MESSAGES = ("What is the capital of France?", "Tell me a story about a fox.")
MARGIN = 8  # pixels around the box


def open_and_run(browser: Browser, address: str, name: str) -> Notebook:
    """Return an opened notebook that has run without errors."""
    notebook = Notebook(browser, address, name)
    notebook.run_all()
    if notebook.errors():
        raise SystemExit(f"{name}: {notebook.errors()}")
    return notebook


def screenshot_chat(browser: Browser, address: str) -> bytes:
    """Return a PNG of the chat box after a short conversation."""
    notebook = open_and_run(browser, address, "2-chat.ipynb")
    notebook.page.set_viewport_size({"width": 1180, "height": 1000})
    box = ChatBox(notebook)
    box.click("Clear")
    for message in MESSAGES:
        box.answer(message)
    box.whole.scroll_into_view_if_needed()
    bounds = box.whole.bounding_box()
    assert bounds is not None, "the box is shown"
    clip = {
        "x": bounds["x"] - MARGIN,
        "y": bounds["y"] - MARGIN,
        "width": bounds["width"] + 2 * MARGIN,
        "height": bounds["height"] + 2 * MARGIN,
    }
    return notebook.page.screenshot(clip=clip)  # type: ignore[arg-type]


def main() -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mixoff-pictures-") as folder:
        for path in (ROOT / "notebooks").glob("*.ipynb"):
            shutil.copy(path, folder)
        with jupyter_lab(Path(folder)) as address, chromium() as browser:
            (PICTURES / "chat.png").write_bytes(screenshot_chat(browser, address))
            figure = open_and_run(browser, address, "3-cache.ipynb").first_picture()
            (PICTURES / "cache.png").write_bytes(figure)
    for path in sorted(PICTURES.glob("*.png")):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
