"""Where known models are: the demo model's folder, published names. Knows nothing of contents."""

from pathlib import Path

from mixoff.errors import MixoffError

# What mixtral-offloading published, in a layout of its own; the command line's default.
# It has no tokenizer: that is the original's.
ORIGINAL_CHECKPOINT = "mistralai/Mixtral-8x7B-Instruct-v0.1"
MIXTRAL_OFFLOADING = "lavawolfiee/Mixtral-8x7B-Instruct-v0.1-offloading-demo"

_PACKAGE = Path(__file__).resolve().parent


def demo_path() -> Path:
    """Return the folder of the demo model, a small trained Mixtral with quantized weights.

    An installed wheel carries it inside the package, a clone of the repository under data/.

    Raises
    ------
    MixoffError
        If it is in neither place.
    """
    return first_checkpoint(_PACKAGE / "demo_mixtral", _PACKAGE.parent / "data" / "demo-mixtral")


def demo_data(name: str) -> Path | None:
    """Return what a clone of the repository has under data/ by this name; None where there is none.

    An installed wheel carries the demo model alone. A notebook in a clone finds these all the same:
    they are looked for beside the package, under the working folder, and beside that.

    Parameters
    ----------
    name
        Such as ``"demo-mixtral-float16"``, the demo model before it was quantized, or
        ``"heldout.txt"``, a text that it never saw: data/README.md lists all.
    """
    roots = (_PACKAGE.parent, Path.cwd(), Path.cwd().parent)
    paths = (root / "data" / name for root in roots)
    return next((path for path in paths if path.exists()), None)


def first_checkpoint(*folders: Path) -> Path:
    """Return the first of the folders that holds a config.json.

    Raises
    ------
    MixoffError
        If none of them does.
    """
    for folder in folders:
        if (folder / "config.json").is_file():
            return folder
    raise MixoffError(
        f"No demo model: neither of {', '.join(map(str, folders))} has a config.json. Install "
        "mixoff from a wheel, which carries it, or run `make demo-model` in a clone."
    )
