"""Committed notebooks keep the rules of support/notebook_rules.py, and the index lists them."""

import copy
import json
import re
from pathlib import Path

import nbformat
import pytest

from support.notebook_rules import faults, good_notebook

FOLDER = Path(__file__).parents[2] / "notebooks"


def with_code(code):
    notebook = good_notebook()
    notebook["cells"][3]["source"] = code
    return notebook


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_keeps_the_rules(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    nbformat.validate(notebook)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert faults(notebook, path.name) == []


def test_the_index_lists_exactly_the_notebooks_that_exist():
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[[^]]+\]\(([^)]+\.ipynb)\)", index, re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in FOLDER.glob("*.ipynb"))


def test_a_good_notebook_has_no_faults():
    notebook = good_notebook()
    assert faults(notebook, "x.ipynb") == []
    badge = "[![Open in Colab](https://a.b/c.svg)](https://d.e/f)"
    filled = notebook["cells"][0]["source"].replace("<!--", f"{badge} {badge} <!--")
    notebook["cells"][0]["source"] = filled
    assert faults(notebook, "x.ipynb") == []


@pytest.mark.parametrize(
    ("place", "value", "fault"),
    [
        (("cells", 3, "outputs"), [{"output_type": "stream"}], "outputs"),
        (("cells", 3, "execution_count"), 1, "execution count"),
        (("cells", 3, "metadata"), {"scrolled": True}, "metadata 'scrolled'"),
        (("metadata", "widgets"), {}, "metadata 'widgets'"),
        (("cells", 3, "id"), "install", "several cells have the id 'install'"),
        (("cells", 3, "id"), "3fa85f64", "isn't readable"),
        (("cells", 3, "id"), "Cell_1", "isn't readable"),
        (("cells", 0, "source"), "A title\n\n<!-- badges -->", "isn't a title"),
        (("cells", 0, "source"), "# A title", "no line <!-- badges -->"),
        (("cells", 0, "source"), "# A title\n\nany <!-- badges -->", "no line <!-- badges -->"),
        (("cells", 0, "cell_type"), "code", "isn't a title"),
        (("cells", 1, "source"), "%pip install -q ..", "doesn't install mixoff"),
        (("cells", 2, "metadata"), {}, "0 cells are tagged"),
        (("cells", 3, "metadata"), {"tags": ["parameters"]}, "2 cells are tagged"),
        (("cells", 2, "source"), "slots = 4\nprint(slots)", "more than assignments"),
    ],
)
def test_each_kind_of_bad_notebook_is_refused(place, value, fault):
    notebook = good_notebook()
    *parents, last = place
    part = notebook
    for key in parents:
        part = part[key]
    part[last] = copy.deepcopy(value)
    assert any(fault in sentence for sentence in faults(notebook, "x.ipynb"))


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        pytest.param("x = 1\n" * 13, "has 13 lines", id="13 lines"),
        ("x =", "isn't Python"),
        ("def f(): ...", "defines f"),
        ("if True:\n    class Policy: ...", "defines Policy"),
        ("name = input('Name?')", "calls input()"),
        ("import sys\nsys.path.append('..')", "uses sys.path"),
        ("folder = '/home/me/model'", "a local path: '/home'"),
        ("folder = '/work/model'", "a local path: '/work'"),
        ("folder = r'C:\\models'", "a local path"),
        ("# hf_abcdefghijKLMNOP", "a token"),
        ("api_key = 'abcdefgh123'", "a token"),
        ("headers = 'Bearer ghp_0123456789012345678901'", "a token"),
    ],
)
def test_each_kind_of_bad_code_is_refused(code, fault):
    assert any(fault in sentence for sentence in faults(with_code(code), "x.ipynb"))


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("x = 1\n" * 12, id="12 lines"),
        "from pathlib import Path\nPath('data/work/tmp').name",
        "link = 'https://example.org/home/work'",
        "    %time x = 1".strip(),
        "token = tokenizer.eos_token",
    ],
)
def test_harmless_code_is_not_refused(code):
    assert faults(with_code(code), "x.ipynb") == []


def test_only_the_notebook_about_policies_may_define_one():
    notebook = with_code("class Mine(mixoff.Policy): ...")
    assert faults(notebook, "6-your-own-policy.ipynb") == []
    assert len(faults(notebook, "5-policies.ipynb")) == 1
