"""Makes README's pictures from the notebooks, in Chromium (`make pictures`).

The chat box is a photograph of notebooks/2-chat.ipynb; the cache is the first figure that
notebooks/3-cache.ipynb draws. Nothing is retouched, so a picture shows what its notebook shows.
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


def ran(browser: Browser, address: str, name: str) -> Notebook:
    """Open a notebook and run it; refuse one with errors."""
    notebook = Notebook(browser, address, name)
    notebook.run_all()
    if notebook.errors():
        raise SystemExit(f"{name}: {notebook.errors()}")
    return notebook


def photograph_chat(browser: Browser, address: str) -> bytes:
    """Return a PNG of the chat box after a short conversation."""
    notebook = ran(browser, address, "2-chat.ipynb")
    notebook.page.set_viewport_size({"width": 1180, "height": 1000})
    box = ChatBox(notebook)
    box.click("Clear")
    for message in MESSAGES:
        box.answer(message)
    box.whole.scroll_into_view_if_needed()
    place = box.whole.bounding_box()
    assert place is not None, "the box is shown"
    clip = {
        "x": place["x"] - MARGIN,
        "y": place["y"] - MARGIN,
        "width": place["width"] + 2 * MARGIN,
        "height": place["height"] + 2 * MARGIN,
    }
    return notebook.page.screenshot(clip=clip)  # type: ignore[arg-type]


def main() -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mixoff-pictures-") as folder:
        for path in (ROOT / "notebooks").glob("*.ipynb"):
            shutil.copy(path, folder)
        with jupyter_lab(Path(folder)) as address, chromium() as browser:
            (PICTURES / "chat.png").write_bytes(photograph_chat(browser, address))
            figure = ran(browser, address, "3-cache.ipynb").first_picture()
            (PICTURES / "cache.png").write_bytes(figure)
    for path in sorted(PICTURES.glob("*.png")):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
