"""Makes an environment for each library that the benchmarks compare with, from pinned packages.

Run it from the root of a clone: ``python3 benchmarks/environments.py`` for all, or with names.
Each becomes ``.venv-peers/NAME``, which git ignores; a complete one is not changed, so a folder of
that name may also be a link to an environment made elsewhere. ``llama`` compiles llama.cpp for this
processor, which took 14 minutes on two cores and needs a compiler and CMake's wheel; the others are
downloads. On Linux, PyPI's torch brings several GB of CUDA libraries: with ``--index URL`` pip
looks for packages at PyTorch's own index of CPU builds first.
"""

import argparse
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".venv-peers"
_TORCH = ("torch==2.13.0", "numpy==2.4.6")
_TRANSFORMERS = (*_TORCH, "transformers==5.23.0", "accelerate==1.15.0", "safetensors==0.8.0")
PINS = {
    "transformers": _TRANSFORMERS,
    "bitsandbytes": (*_TORCH, "bitsandbytes==0.50.2"),
    "airllm": (*_TRANSFORMERS, "airllm==4.0.0"),
    "llama": ("llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy"),
}
_PROBES = {"bitsandbytes": "bitsandbytes", "llama": "llama_cpp, gguf"}  # else the same name


def python_of(name: str) -> Path:
    """Return the path of Python in a peer's environment, which may not exist yet."""
    return FOLDER / name / "bin" / "python"


def is_complete(name: str) -> bool:
    """Return whether a peer's environment can import the peer."""
    if not python_of(name).exists():
        return False
    words = [str(python_of(name)), "-c", f"import {_PROBES.get(name, name)}"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def make(name: str, index: str | None) -> None:
    """Make an environment, and install the peer's packages."""
    venv.create(FOLDER / name, with_pip=True)
    words = [str(python_of(name)), "-m", "pip", "install", "-q", *PINS[name]]
    if index:
        words += ["--index-url", index, "--extra-index-url", "https://pypi.org/simple"]
    # ggml is compiled for all instructions of this processor, as its documentation advises.
    env = {"CMAKE_ARGS": "-DGGML_NATIVE=ON", **os.environ}
    subprocess.run(words, check=True, env=env)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PINS))
    parser.add_argument("--index", help="where torch's CPU builds are")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in PINS]:
        sys.exit(f"{unknown[0]}: there are {', '.join(PINS)}")
    for name in options.names or PINS:
        if is_complete(name):
            print(f"{name}: there")
            continue
        print(f"{name}: installs {', '.join(PINS[name])}", flush=True)
        make(name, options.index)


if __name__ == "__main__":
    main()
