"""Fills the badges line of every notebook: one click opens it in Colab or Kaggle.

The repository's address is the `url` of setup.py, and nowhere else; without it, nothing changes.
Badges lead to the notebook as it was released (the tag `v` and the version), not to what changes.
"""

import argparse
import ast
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARKER = "<!-- badges -->"
COLAB = "https://colab.research.google.com"
KAGGLE = "https://kaggle.com"


def repository(setup: Path) -> str | None:
    """Return "owner/name" from the `url` of a setup.py, None where it has none."""
    keywords = [node for node in ast.walk(ast.parse(setup.read_text(encoding="utf-8")))
                if isinstance(node, ast.keyword) and node.arg == "url"]  # fmt: skip
    if not keywords:
        return None
    address = ast.literal_eval(keywords[0].value)
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?", address)
    if found is None:
        raise SystemExit(f"setup.py: url={address!r} isn't https://github.com/OWNER/NAME.")
    return found[1]


def version(package: Path) -> str:
    """Return `__version__` of a package's __init__.py, without importing it."""
    found = re.search(r'^__version__ = "([^"]+)"$', package.read_text("utf-8"), re.MULTILINE)
    if found is None:
        raise SystemExit(f'{package} has no line `__version__ = "..."`.')
    return found[1]


def badges(owner_and_name: str, tag: str, notebook: str) -> str:
    """Return the Markdown of a notebook's two badges."""
    place = f"{owner_and_name}/blob/{tag}/notebooks/{notebook}"
    colab = f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({COLAB}/github/{place})"
    source = f"https://github.com/{place}"
    kaggle = (
        f"[![Open in Kaggle]({KAGGLE}/static/images/open-in-kaggle.svg)]"
        f"({KAGGLE}/kernels/welcome?src={source})"
    )
    return f"{colab} {kaggle}"


def fill(path: Path, line: str) -> None:
    """Write the badges before the marker of a notebook's first cell, in place of older ones."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    first = notebook["cells"][0]
    text = "".join(first["source"])
    marked = re.compile(rf"^.*{MARKER}$", re.MULTILINE)
    if len(marked.findall(text)) != 1:
        raise SystemExit(f"{path.name}: the first cell has no line {MARKER}.")
    first["source"] = marked.sub(lambda _: f"{line} {MARKER}", text).splitlines(keepends=True)
    written = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    path.write_text(written, encoding="utf-8")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--root", type=Path, default=ROOT, help="of the repository")
    root = arguments.parse_args().root
    found = repository(root / "setup.py")
    if found is None:
        print("setup.py has no url: nothing is published yet, and no badge can lead anywhere.")
        sys.exit()
    tag = f"v{version(root / 'mixoff' / '__init__.py')}"
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        fill(path, badges(found, tag, path.name))
        print(f"{path.name}: {found}, {tag}")


if __name__ == "__main__":
    main()
