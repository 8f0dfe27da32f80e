"""The browser's driver, on notebooks that need neither a model nor torch."""

import nbformat.v4 as v4
import pytest

VERSIONS = {"own": ["8.", "7."], "colab": ["7.7.1", "6.17.1"]}
BUTTON = """import ipywidgets, ipykernel
button, clicks = ipywidgets.Button(description="Click"), []
button.on_click(clicks.append)
button"""


def notebook(*cells):
    return v4.new_notebook(cells=[v4.new_code_cell(cell) for cell in cells])


def test_a_click_reaches_a_kernel_of_the_expected_versions(open_notebook, kernel):
    opened = open_notebook(notebook(BUTTON), "button.ipynb")
    opened.run_all()
    assert opened.errors() == []
    opened.page.get_by_role("button", name="Click", exact=True).click()
    opened.wait_until("len(clicks) == 1")
    versions = opened.evaluate("[ipywidgets.__version__, ipykernel.__version__]")
    expected = VERSIONS[kernel]
    assert [v[: len(e)] for v, e in zip(versions, expected, strict=True)] == expected


def test_a_failing_cell_is_reported_and_stops_the_run(open_notebook):
    opened = open_notebook(notebook("ran = 1", "1 / 0", "ran = 2"), "fails.ipynb")
    opened.run_all()
    assert opened.errors() == ["ZeroDivisionError: division by zero"]
    assert opened.evaluate("ran") == 1
    with pytest.raises(RuntimeError, match="missing"):
        opened.evaluate("missing")
