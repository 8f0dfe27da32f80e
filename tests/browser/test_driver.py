"""The driver itself, on notebooks that need neither a model nor torch."""

from textwrap import dedent

import nbformat.v4 as v4
import pytest
from kernels import KERNELS

VERSIONS = {"python3": ("8", "7"), "colab": ("7.7.1", "6.17.1")}


def notebook(*cells):
    return v4.new_notebook(cells=[v4.new_code_cell(cell) for cell in cells])


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_has_the_versions_that_it_stands_for(open_notebook, kernel):
    opened = open_notebook(notebook("import ipykernel, ipywidgets"), f"v-{kernel}.ipynb", kernel)
    opened.run_all()
    assert opened.errors() == []
    found = opened.ask("[ipywidgets.__version__, ipykernel.__version__]")
    wanted = VERSIONS[kernel]
    assert [f[: len(w)] for f, w in zip(found, wanted, strict=True)] == [*wanted]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_button_of_a_widget_runs_its_callback(open_notebook, kernel):
    cell = """
    import ipywidgets
    button, clicks = ipywidgets.Button(description="Click"), []
    button.on_click(clicks.append)
    button"""
    opened = open_notebook(notebook(dedent(cell).strip()), f"button-{kernel}.ipynb", kernel)
    opened.run_all()
    assert opened.errors() == []
    opened.page.get_by_role("button", name="Click", exact=True).click()
    opened.wait_until("len(clicks) == 1")


def test_a_failing_cell_is_told_and_stops_the_run(open_notebook):
    opened = open_notebook(notebook("ran = 1", "1 / 0", "ran = 2"), "fails.ipynb", "python3")
    opened.run_all()
    assert opened.errors() == ["ZeroDivisionError: division by zero"]
    assert opened.ask("ran") == 1


def test_a_wrong_question_is_told_not_waited_for(open_notebook):
    opened = open_notebook(notebook("x = 1"), "question.ipynb", "python3")
    opened.run_all()
    with pytest.raises(RuntimeError, match="missing"):
        opened.ask("missing")
