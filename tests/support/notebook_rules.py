"""The rules that a committed notebook keeps. Reads its JSON; runs nothing."""

import ast
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import nbformat.v4 as v4

Notebook = dict[str, Any]

BADGES = "<!-- badges -->"
BADGE_LINK = r"\[!\[[^]]+\]\(https://[^)]+\)\]\(https://[^)]+\)"
LINES = 12  # of a code cell, at most
NOTEBOOK_METADATA = {"kernelspec", "language_info", "accelerator", "colab"}
CELL_METADATA = {"tags"}
MAY_DEFINE = {"6-your-own-policy.ipynb"}  # there, a class is the lesson

LOCAL_PATH = re.compile(r"(?<![\w./:-])/(?:home|root|work|tmp|Users)\b|\bC:\\")
TOKEN = re.compile(
    r"\bhf_[A-Za-z0-9]{10,}|\bsk-[\w-]{16,}|\bgh[pousr]_\w{20,}|\bAKIA[0-9A-Z]{16}\b"
    r"|(?i:api_?key|token|secret|password)\s*=\s*[\"'][^\"']{8,}[\"']"
)
READABLE_ID = re.compile(r"(?![0-9a-f]*\d[0-9a-f]*$)[a-z][a-z0-9]*(-[a-z0-9]+)*")


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def code_cells(notebook: Notebook) -> Iterator[tuple[str, str]]:
    """Yield the id and the source of every code cell."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            yield cell.get("id", "?"), source(cell)


def python(code: str) -> str:
    """Return a cell's code with `pass` in place of magics and shell commands."""
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", code, flags=re.MULTILINE)


def syntax(code: str) -> ast.Module:
    """Return a cell's parsed code; an empty module if it isn't Python (see `is_not_python`)."""
    try:
        return ast.parse(python(code))
    except SyntaxError:
        return ast.Module(body=[], type_ignores=[])


def is_not_python(notebook: Notebook) -> Iterator[str]:
    for name, code in code_cells(notebook):
        try:
            ast.parse(python(code))
        except SyntaxError as error:
            yield f"cell {name} isn't Python: {error}"


def holds_results(notebook: Notebook) -> Iterator[str]:
    for cell in notebook["cells"]:
        if cell.get("outputs"):
            yield f"cell {cell.get('id')} has outputs"
        if cell.get("execution_count") is not None:
            yield f"cell {cell.get('id')} has an execution count"


def holds_other_metadata(notebook: Notebook) -> Iterator[str]:
    for key in notebook["metadata"].keys() - NOTEBOOK_METADATA:
        yield f"the notebook has metadata {key!r}"
    for cell in notebook["cells"]:
        for key in cell["metadata"].keys() - CELL_METADATA:
            yield f"cell {cell.get('id')} has metadata {key!r}"


def lacks_good_ids(notebook: Notebook) -> Iterator[str]:
    ids = [cell.get("id", "") for cell in notebook["cells"]]
    for name in sorted({name for name in ids if ids.count(name) > 1}):
        yield f"several cells have the id {name!r}"
    for name in ids:
        if not READABLE_ID.fullmatch(name):
            yield f"the id {name!r} isn't readable: use words, as in load-model"


def holds_private_text(notebook: Notebook) -> Iterator[str]:
    for cell in notebook["cells"]:
        for kind, pattern in (("a local path", LOCAL_PATH), ("a token", TOKEN)):
            if match := pattern.search(source(cell)):
                yield f"cell {cell.get('id')} holds {kind}: {match[0]!r}"


def lacks_a_title(notebook: Notebook) -> Iterator[str]:
    first = notebook["cells"][0]
    text = source(first)
    if first["cell_type"] != "markdown" or not text.startswith("# "):
        yield "the first cell isn't a title"
    marked = rf"^({BADGE_LINK} )*{re.escape(BADGES)}$"
    if len(re.findall(marked, text, re.MULTILINE)) != 1:
        yield f"the first cell has no line {BADGES}, alone or after badges"


def lacks_an_install_cell(notebook: Notebook) -> Iterator[str]:
    second = source(notebook["cells"][1]) if notebook["cells"][1:] else ""
    match syntax(second).body:
        case [ast.Try(body=[ast.Import()], handlers=[ast.ExceptHandler(type=ast.Name(reason))])]:
            if reason == "ImportError" and re.search(r"^    %pip install ", second, re.MULTILINE):
                return
    yield "the second cell doesn't install mixoff where it is missing, and only there"


def lacks_parameters(notebook: Notebook) -> Iterator[str]:
    tagged = [c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", [])]
    if len(tagged) != 1:
        yield f"{len(tagged)} cells are tagged `parameters`"
    for cell in tagged:
        plain = (ast.Assign, ast.AnnAssign)
        if not all(isinstance(line, plain) for line in syntax(source(cell)).body):
            yield "the cell tagged `parameters` holds more than assignments"


def has_long_cells(notebook: Notebook) -> Iterator[str]:
    for name, code in code_cells(notebook):
        if len(code.splitlines()) > LINES:
            yield f"cell {name} has {len(code.splitlines())} lines of code: {LINES} at most"


def reads_input_or_changes_the_path(notebook: Notebook) -> Iterator[str]:
    for name, code in code_cells(notebook):
        for node in ast.walk(syntax(code)):
            match node:
                case ast.Call(func=ast.Name(id="input")):
                    yield f"cell {name} calls input()"
                case ast.Attribute(value=ast.Name(id="sys"), attr="path"):
                    yield f"cell {name} uses sys.path"


def defines(notebook: Notebook) -> Iterator[str]:
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for name, code in code_cells(notebook):
        for node in ast.walk(syntax(code)):
            if isinstance(node, definitions):
                yield f"cell {name} defines {node.name}: that belongs into the package"


RULES: tuple[Callable[[Notebook], Iterator[str]], ...] = (
    holds_results,
    holds_other_metadata,
    lacks_good_ids,
    holds_private_text,
    lacks_a_title,
    lacks_an_install_cell,
    lacks_parameters,
    is_not_python,
    has_long_cells,
    reads_input_or_changes_the_path,
)


def faults(notebook: Notebook, name: str) -> list[str]:
    """Return the faults of a notebook with this file name, one sentence each."""
    rules = RULES if name in MAY_DEFINE else (*RULES, defines)
    return [fault for rule in rules for fault in rule(notebook)]


INSTALL = """try:
    import mixoff
except ImportError:  # a reason
    %pip install -q ..
    import mixoff"""


def good_notebook():
    cells = [
        v4.new_markdown_cell("# A title\n\n<!-- badges -->\n\nOne sentence.", id="title"),
        v4.new_code_cell(INSTALL, id="install"),
        v4.new_code_cell("slots = 4", id="parameters", metadata={"tags": ["parameters"]}),
        v4.new_code_cell("import mixoff\nmixoff.demo_path()", id="find-demo-2"),
    ]
    return json.loads(json.dumps(v4.new_notebook(cells=cells)))
