"""One server and one browser for all tests; a picture of every page after every test."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from support.browser import kernels
from support.browser.lab import jupyter_lab
from support.browser.tab import Notebook, chromium, picture

PICTURES = kernels.ROOT / "build" / "screenshots"
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
FIGURES = pytest.StashKey[list[str]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("browser")


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return a function that adds a measured figure to the summary of the run."""
    return request.config.stash.setdefault(FIGURES, []).append


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    figures = config.stash.get(FIGURES, [])
    if figures:
        terminalreporter.section("measured")
        for figure in figures:
            terminalreporter.write_line(figure)
        terminalreporter.section("screenshots")
        for path in sorted(PICTURES.glob("*.png")):
            terminalreporter.write_line(str(path.relative_to(kernels.ROOT)))


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the server's folder, with copies only, since JupyterLab saves notebooks by itself."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    for old in PICTURES.glob("*.png"):
        old.unlink()
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="session", params=sorted(kernels.SHARES, reverse=True))
def kernel(request: pytest.FixtureRequest) -> str:
    """Return the name of the test's kernel; a test with this fixture runs once with each."""
    return request.param


@pytest.fixture(scope="session")
def address(root: Path, kernel: str) -> Iterator[str]:
    kernels.main()
    with jupyter_lab(root, kernels.SHARES[kernel]) as served:
        yield served


@pytest.fixture(scope="session")
def open_notebook(browser: Browser, address: str, root: Path) -> Iterator[Callable[..., Notebook]]:
    """Return a function that saves a notebook's JSON under a name, and opens it in a new tab."""
    opened: list[Notebook] = []

    def save_and_open(content: dict[str, Any], name: str) -> Notebook:
        metadata = {"kernelspec": KERNEL, **content["metadata"]}
        (root / name).write_text(json.dumps({**content, "metadata": metadata}))
        opened.append(Notebook(browser, address, name))
        return opened[-1]

    yield save_and_open
    for notebook in opened:
        notebook.close()


@pytest.fixture
def open_tab(browser: Browser, address: str) -> Iterator[Callable[[str], Notebook]]:
    """Return a function that opens a saved notebook in a further tab until the test ends."""
    opened: list[Notebook] = []

    def open_saved(name: str) -> Notebook:
        opened.append(Notebook(browser, address, name))
        return opened[-1]

    yield open_saved
    for notebook in opened:
        notebook.close()


@pytest.fixture(autouse=True)
def _picture_of_every_page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[None]:
    """Save what every open page shows at the end of a test, whether it passed or failed."""
    yield
    for context in browser.contexts:
        for number, page in enumerate(context.pages):
            suffix = f"-{number}" if number else ""
            picture(page, PICTURES, f"{request.node.name}{suffix}")
