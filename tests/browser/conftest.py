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
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return what notes a measured figure, which is printed when all tests have run."""
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
    """Return the folder that the server serves: copies only, for JupyterLab saves by itself."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    for old in PICTURES.glob("*.png"):
        old.unlink()
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="session", params=sorted(kernels.SHARES, reverse=True))
def kernel(request: pytest.FixtureRequest) -> str:
    """Return which of the kernels a test runs with: every test that asks runs with each."""
    return request.param


@pytest.fixture(scope="session")
def address(root: Path, kernel: str) -> Iterator[str]:
    kernels.main()
    with jupyter_lab(root, kernels.SHARES[kernel]) as served:
        yield served


@pytest.fixture(scope="session")
def open_notebook(browser: Browser, address: str, root: Path) -> Iterator[Callable[..., Notebook]]:
    """Return what saves a notebook's JSON under a name, and opens it in a tab of its own."""
    opened: list[Notebook] = []

    def open_one(content: dict[str, Any], name: str) -> Notebook:
        metadata = {"kernelspec": KERNEL, **content["metadata"]}
        (root / name).write_text(json.dumps({**content, "metadata": metadata}))
        opened.append(Notebook(browser, address, name))
        return opened[-1]

    yield open_one
    for notebook in opened:
        notebook.close()


@pytest.fixture
def open_tab(browser: Browser, address: str) -> Iterator[Callable[[str], Notebook]]:
    """Return what opens a saved notebook in a further tab, which is closed after the test."""
    opened: list[Notebook] = []

    def open_one(name: str) -> Notebook:
        opened.append(Notebook(browser, address, name))
        return opened[-1]

    yield open_one
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
