"""Paths of the demo model and its data, and names of published checkpoints.

Knows where they are; nothing of their contents.
"""

from pathlib import Path

from mixoff.errors import MixoffError

ORIGINAL_CHECKPOINT = "mistralai/Mixtral-8x7B-Instruct-v0.1"
# The checkpoint that mixtral-offloading published, in a layout of its own; the command line's
# default. It has no tokenizer, so the original's is used.
MIXTRAL_OFFLOADING = "lavawolfiee/Mixtral-8x7B-Instruct-v0.1-offloading-demo"

_PACKAGE = Path(__file__).resolve().parent


def demo_path() -> Path:
    """Return the folder of the demo model, a small trained Mixtral with quantized weights.

    An installed wheel has it inside the package, a clone of the repository under data/.

    Raises
    ------
    MixoffError
        If it is in neither place.
    """
    return first_checkpoint(_PACKAGE / "demo_mixtral", _PACKAGE.parent / "data" / "demo-mixtral")


def demo_data(name: str) -> Path | None:
    """Return the path of a file or folder under data/ of a clone; None if there is none.

    An installed wheel contains the demo model only. For a notebook in a clone, data/ is searched
    beside the package, in the working folder, and beside the working folder.

    Parameters
    ----------
    name
        Such as ``"demo-mixtral-float16"``, the demo model before it was quantized, or
        ``"heldout.txt"``, a text that it wasn't trained on: data/README.md lists all.
    """
    roots = (_PACKAGE.parent, Path.cwd(), Path.cwd().parent)
    paths = (root / "data" / name for root in roots)
    return next((path for path in paths if path.exists()), None)


def first_checkpoint(*folders: Path) -> Path:
    """Return the first folder that has a config.json.

    Raises
    ------
    MixoffError
        If none of them does.
    """
    for folder in folders:
        if (folder / "config.json").is_file():
            return folder
    raise MixoffError(
        f"No demo model: none of {', '.join(map(str, folders))} has a config.json. Install mixoff "
        "from a wheel, which contains it, or run `make demo-model` in a clone."
    )
