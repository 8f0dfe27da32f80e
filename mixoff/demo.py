"""Where the demo model lies. Knows two folders; knows nothing of what is in a model."""

from pathlib import Path

from mixoff.errors import MixoffError

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
