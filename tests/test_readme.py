"""What README shows as Python runs, in the order in which it stands there."""

import re
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib import pyplot as plt

README = Path(__file__).parents[1] / "README.md"


def test_the_examples_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(README.parent / "data")
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 2
    try:
        exec(compile("\n".join(blocks), "README.md", "exec"), {})
    finally:
        plt.close("all")
    printed = capsys.readouterr().out
    assert "The capital of France is Paris." in printed
    assert re.search(r"Step \d+ \((prefill|decode)[^)]*\) took", printed)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "fox.trace", "fox.json"}


@pytest.mark.parametrize("file", ["README.md", "CHANGELOG.md", "data/README.md"])
def test_no_line_of_prose_leads_out_of_the_repository(file):
    text = (README.parent / file).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert ((README.parent / file).parent / target).exists(), target
