"""The package's rooms, the one order between them, and what a room may load."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mixoff"

# A room, or a module at the top, imports only what stands before it: ARCHITECTURE.md shows why.
ORDER = (
    "errors",
    "_version",
    "safe_json",
    "units",
    "policies",
    "predictors",
    "config",
    "trace",
    "simulate",
    "plots",
    "quantization",
    "kernels",
    "tiers",
    "families",
    "checkpoints",
    "hub",
    "convert",
    "known_models",
    "planning",
    "cache",
    "models",
    "chat",
    "measure",
    "widget",
    "cli",
)
WITHOUT_TORCH = ("config", "plots", "policies", "predictors", "simulate", "trace")
NO_ROOM = {"__init__", "__main__"}  # the table of public names, and ``python -m mixoff``


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if room_of(path) not in NO_ROOM)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(tree: ast.AST, *, at_run_time: bool = False) -> Iterator[str]:
    """Yield the full name of everything that a module imports, inside functions, too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "mixoff." * (node.level > 0) + (node.module or "")
            yield from (f"{origin.rstrip('.')}.{alias.name}" for alias in node.names)
        elif at_run_time and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        else:
            yield from imported_names(node, at_run_time=at_run_time)


def imported_rooms(room: str, tree: ast.AST) -> set[str]:
    """Return the rooms that a module of a room imports; "mixoff" is the table of public names."""
    names = {name for name in imported_names(tree) if f"{name}.".startswith("mixoff.")}
    parts = [name.split(".")[1:] for name in names]
    return {p[0] if p and (p[1:] or p[0] in ORDER) else "mixoff" for p in parts} - {room}


def test_imports_run_one_way() -> None:
    wrong = []
    for path in modules():
        room = room_of(path)
        assert room in ORDER, f"mixoff/{room} is new: place it in ORDER, in {__file__}"
        rooms = imported_rooms(room, ast.parse(path.read_text(encoding="utf-8")))
        wrong += [f"{module_name(path)}: {late}" for late in rooms - {*ORDER[: ORDER.index(room)]}]
    assert not wrong, "these import a room that stands after theirs"


def test_every_room_of_the_order_is_there() -> None:
    assert {*ORDER} == {room_of(path) for path in modules()}


@pytest.mark.parametrize(
    ("line", "imported"),
    [
        ("import mixoff.cache", {"cache"}),
        ("from mixoff.cache.cache import ExpertCache", {"cache"}),
        ("from mixoff import cache", {"cache"}),
        ("from . import cache", {"cache"}),
        ("from .cache import ExpertCache", {"cache"}),
        ("from mixoff import ExpertCache", {"mixoff"}),
        ("import mixoff", {"mixoff"}),
        ("from mixoff.new import anything", {"new"}),
        ("def f():\n    import mixoff.cache", {"cache"}),
        ("if TYPE_CHECKING:\n    import mixoff.cache", {"cache"}),
        ("import torch", set()),
    ],
)
def test_no_way_to_write_an_import_escapes_the_order(line: str, imported: set[str]) -> None:
    assert imported_rooms("tiers", ast.parse(line)) == imported


def test_no_modules_import_each_other() -> None:
    known = {module_name(path) for path in modules()}
    graph = {}
    for path in modules():
        names = imported_names(ast.parse(path.read_text(encoding="utf-8")), at_run_time=True)
        targets = {name if name in known else name.rpartition(".")[0] for name in names}
        graph[module_name(path)] = targets & known - {module_name(path)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_a_room_of_numbers_loads_no_torch(room: str) -> None:
    names = [module_name(path) for path in modules() if room_of(path) == room]
    if room == "predictors":  # its table is read without torch; what it makes needs torch
        names = ["mixoff.predictors"]
    code = f"import sys, {', '.join(names)}\nprint([n for n in sys.modules if n == 'torch'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("folder", sorted({path.parent for path in modules()} - {PACKAGE}))
def test_a_room_says_what_it_knows_and_has_at_most_fifteen_files(folder: Path) -> None:
    tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{folder}/__init__.py says nothing"
    assert len([*folder.glob("[!_]*.py")]) <= 15


def test_no_object_is_given_another_class() -> None:
    changed = [module_name(p) for p in modules() if re.search(r"__class__\s*=[^=]", p.read_text())]
    assert not changed
