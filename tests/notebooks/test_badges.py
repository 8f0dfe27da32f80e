"""`make badges`, on copies: badges are made from setup.py's url, and from nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from support.notebook_rules import faults, good_notebook

SCRIPT = Path(__file__).parents[2] / "notebooks" / "badges.py"
URL = 'url="https://github.com/someone/mixoff"'


@pytest.fixture
def clone(tmp_path):
    """Make the files of a repository that the script reads, with one notebook."""
    (tmp_path / "setup.py").write_text('setup(name="mixoff")\n')
    for folder in ("mixoff", "notebooks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "mixoff" / "__init__.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "notebooks" / "2-chat.ipynb").write_text(json.dumps(good_notebook(), indent=1))
    return tmp_path


def run(clone):
    command = [sys.executable, SCRIPT, "--root", clone]
    return subprocess.run(command, capture_output=True, text=True)


def title(clone):
    notebook = json.loads((clone / "notebooks" / "2-chat.ipynb").read_text())
    nbformat.validate(notebook)
    assert faults(notebook, "2-chat.ipynb") == []
    return "".join(notebook["cells"][0]["source"])


def test_without_a_url_the_script_says_so_and_changes_nothing(clone):
    before = (clone / "notebooks" / "2-chat.ipynb").read_bytes()
    done = run(clone)
    assert done.returncode == 0
    assert "setup.py has no url" in done.stdout
    assert (clone / "notebooks" / "2-chat.ipynb").read_bytes() == before


def test_with_a_url_both_badges_link_to_the_released_notebook(clone):
    (clone / "setup.py").write_text(f'setup(name="mixoff", {URL})\n')
    assert run(clone).returncode == 0
    path = "someone/mixoff/blob/v1.2.3/notebooks/2-chat.ipynb)"
    assert f"(https://colab.research.google.com/github/{path}" in title(clone)
    assert f"(https://kaggle.com/kernels/welcome?src=https://github.com/{path}" in title(clone)


def test_a_second_run_replaces_the_badges_and_changes_nothing_else(clone):
    (clone / "setup.py").write_text(f'setup(name="mixoff", {URL})\n')
    run(clone)
    first = title(clone)
    run(clone)
    assert title(clone) == first
    (clone / "setup.py").write_text(f'setup(name="mixoff", {URL.replace("someone", "other")})\n')
    run(clone)
    assert title(clone) == first.replace("someone", "other")


def test_a_url_outside_github_is_refused(clone):
    (clone / "setup.py").write_text('setup(url="https://example.org/mixoff")\n')
    done = run(clone)
    assert done.returncode == 1
    assert "https://github.com/OWNER/NAME" in done.stderr
