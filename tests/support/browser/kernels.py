"""The kernels of browser tests: this environment's own, and one of Colab's versions.

`python tests/support/browser/kernels.py` makes the second one, from PyPI, if it is missing.
"""

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PINS = Path(__file__).with_name("colab-kernel.txt")
ENVIRONMENT = ROOT / "build" / "colab-kernel"
# The folder of kernels and front end that a server searches before its own environment.
SHARES = {"own": None, "colab": ENVIRONMENT / "share" / "jupyter"}


def python(environment: Path) -> Path:
    return environment / "bin" / "python"


def make_environment(environment: Path) -> None:
    """Install Colab's versions into an environment that takes all other packages from this one.

    Its own packages take precedence, since `addsitedir` appends; editable installs work, too.
    """
    venv.create(environment, clear=True, with_pip=False)
    install = ["install", "--quiet", "--no-deps", "--requirement", str(PINS)]
    pip = [sys.executable, "-m", "pip", "--python", str(python(environment))]
    subprocess.run([*pip, *install], check=True)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    done = subprocess.run(
        [python(environment), "-c", code], check=True, capture_output=True, text=True
    )
    line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    Path(done.stdout.strip(), "main-environment.pth").write_text(line, encoding="utf-8")


def write_specification(environment: Path, share: Path) -> None:
    """Make the kernel `python3` the environment's Python, not the server's."""
    folder = share / "kernels" / "python3"
    folder.mkdir(parents=True, exist_ok=True)
    specification = {
        "argv": [str(python(environment)), "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Colab's versions",
        "language": "python",
    }
    (folder / "kernel.json").write_text(json.dumps(specification, indent=1), encoding="utf-8")


def has_pinned_versions(environment: Path) -> bool:
    """Return whether the environment runs, and has exactly the pinned versions."""
    pins = [line.split("==") for line in PINS.read_text("utf-8").split() if "==" in line]
    code = f"import importlib.metadata as m; assert all(m.version(n) == v for n, v in {pins!r})"
    if not python(environment).exists():
        return False
    return subprocess.run([python(environment), "-c", code], capture_output=True).returncode == 0


def main() -> None:
    """Make the kernel of Colab's versions if it is missing or differs from the pins."""
    if not has_pinned_versions(ENVIRONMENT):
        make_environment(ENVIRONMENT)
        write_specification(ENVIRONMENT, SHARES["colab"])
    print(f"The kernel of Colab's versions runs from {ENVIRONMENT.relative_to(ROOT)}.")


if __name__ == "__main__":
    main()
