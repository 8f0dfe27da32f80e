"""What a newcomer installs, reads and imports keeps its promises."""

import ast
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from mixoff.errors import MixoffError
from mixoff.known_models import first_checkpoint

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mixoff"


def setup_arguments() -> dict[str, Any]:
    """Return those arguments of setup.py's setup() that are written out."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    (call,) = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "setup"]
    wanted = {"install_requires", "extras_require"}
    return {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg in wanted}


def ranges() -> dict[str, Requirement]:
    arguments = setup_arguments()
    extras = arguments["extras_require"].values()
    lines = [*arguments["install_requires"], *(line for extra in extras for line in extra)]
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


def pins() -> dict[str, str]:
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE))


def start_commands() -> list[str]:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    start = re.search(r"^## Start\n(.*?)(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL)
    assert start, "README.md has no heading ## Start"
    return re.findall(r"^```sh\n(.*?)^```$", start[1], re.MULTILINE | re.DOTALL)


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_ranges_of_setup_admit_every_pinned_version() -> None:
    refused = {
        name: version
        for name, version in pins().items()
        if not ranges()[name].specifier.contains(version)
    }
    assert not refused


def test_every_dependency_is_pinned_and_nothing_else() -> None:
    assert set(pins()) == set(ranges())


def test_requirements_end_with_this_package_and_all_its_extras() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert lines[-1] == f"-e .[{','.join(setup_arguments()['extras_require'])}]"


def test_the_help_of_the_command_line_imports_no_torch() -> None:
    code = """
import sys
from mixoff.cli import main
sys.argv = ["mixoff", "--help"]
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
print("torch" in sys.modules)
"""
    *help_text, answer = run_python(code).splitlines()
    assert any("demo" in line for line in help_text)
    assert answer == "False"


def test_readme_starts_with_two_commands_that_each_make_their_own_environment() -> None:
    commands = start_commands()
    assert len(commands) == 2
    for command in commands:
        assert command.count("\n") == 1, "a command is one line"
        assert command.startswith("python3 -m venv .venv && ")
        assert ".venv/bin/pip install -q -r requirements.txt" in command


def test_ci_reads_the_same_two_commands_out_of_readme() -> None:
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    function = re.search(r"^start_command\(\) \{.*?^\}$", text, re.MULTILINE | re.DOTALL)
    assert function
    script = f"{function[0]}\nstart_command 1; start_command 2"
    done = subprocess.run(
        ["bash", "-euc", script],
        env={**os.environ, "clone": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "".join(start_commands())


def test_readme_has_a_place_for_the_quality_table() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^<!-- quality:begin -->\n(.*\n)*<!-- quality:end -->$", readme, re.MULTILINE)


def test_the_changelog_has_an_unreleased_section() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "\n## [Unreleased]\n" in changelog


def test_the_licence_is_the_unmodified_text_of_apache_2() -> None:
    text = (ROOT / "LICENSE").read_bytes()
    published = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert hashlib.sha256(text).hexdigest() == published


def test_the_demo_model_inside_the_package_comes_first(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "config.json").touch()
    assert first_checkpoint(inside, outside) == inside


def test_a_folder_without_config_is_not_a_demo_model(tmp_path: Path) -> None:
    empty, whole = tmp_path / "empty", tmp_path / "whole"
    empty.mkdir()
    whole.mkdir()
    (whole / "config.json").touch()
    assert first_checkpoint(empty, whole) == whole


def test_a_missing_demo_model_tells_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(MixoffError, match="make demo-model"):
        first_checkpoint(tmp_path / "nowhere")
