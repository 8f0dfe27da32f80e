"""The public names: one table, loaded when they are first used."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import mixoff

ROOT = Path(__file__).resolve().parents[1]


def type_checkers_names() -> dict[str, str]:
    """Return where type checkers are told that each public name is defined."""
    tree = ast.parse((ROOT / "mixoff" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_type_checkers_see_the_same_names_in_the_same_places() -> None:
    rooms = dict.fromkeys(mixoff._ROOMS, "mixoff")
    assert type_checkers_names() == mixoff._HOME | rooms


@pytest.mark.parametrize("name", mixoff.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(mixoff, name).__doc__ if name != "__version__" else mixoff.__version__


def test_dir_shows_what_is_public_and_nothing_else() -> None:
    assert dir(mixoff) == sorted(mixoff.__all__)
    names = run_python("import mixoff, mixoff.cache.cache; print(*dir(mixoff))")
    assert names.split() == sorted(mixoff.__all__)


def test_a_room_is_loaded_when_it_is_first_used() -> None:
    code = "import mixoff; print([*mixoff.policies.POLICIES][0], mixoff.Policy.__name__)"
    assert run_python(code) == "lru Policy"


def test_importing_mixoff_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'pandas', 'transformers', 'matplotlib', 'ipywidgets', 'typer'}"
    code = f"import sys, mixoff; dir(mixoff); print({heavy} & sys.modules.keys())"
    assert run_python(code) == "set()"


def test_another_name_is_refused_as_python_does() -> None:
    with pytest.raises(AttributeError, match="module 'mixoff' has no attribute 'tables'"):
        mixoff.tables  # noqa: B018


@pytest.mark.parametrize("room", mixoff._ROOMS)
def test_a_room_lists_what_it_exports(room: str) -> None:
    module = import_module(f"mixoff.{room}")
    assert all(hasattr(module, name) for name in module.__all__)
