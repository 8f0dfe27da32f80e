"""The two pages for developers name files that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("ARCHITECTURE.md", "CONTRIBUTING.md")
FILE = re.compile(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|md|ipynb|toml|txt)|(?:[\w.-]+/)+)`")


def files_named(page: str) -> list[str]:
    """Return the files and folders that a page names in backticks, but for every room's own."""
    names = FILE.findall((ROOT / page).read_text(encoding="utf-8"))
    return [name for name in names if name != "__init__.py"]


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    names = files_named(page)
    assert len(names) > 20
    places = (ROOT, ROOT / "mixoff")
    missing = [name for name in names if not any((place / name).exists() for place in places)]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_readme_links_the_page(page: str) -> None:
    assert f"({page})" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_picture_has_every_room() -> None:
    picture = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").split("```")[1]
    rooms = {path.parent.name for path in (ROOT / "mixoff").glob("*/__init__.py")}
    assert rooms <= {*re.findall(r"\w+", picture)}
