"""The kernels that notebooks are opened with: this environment's own, and one of Colab's versions.

`python tests/support/browser/kernels.py` makes the second one where it is missing: from PyPI.
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
# Where a server looks for kernels and its front end before it looks into its own environment.
SHARES = {"own": None, "colab": ENVIRONMENT / "share" / "jupyter"}


def python(environment: Path) -> Path:
    return environment / "bin" / "python"


def make_environment(environment: Path) -> None:
    """Install Colab's versions into an environment that finds all else in this one.

    Its own packages come first, since `addsitedir` appends; editable installs are found, too.
    """
    venv.create(environment, clear=True, with_pip=False)
    install = ["install", "--quiet", "--no-deps", "--requirement", str(PINS)]
    pip = [sys.executable, "-m", "pip", "--python", str(python(environment))]
    subprocess.run([*pip, *install], check=True)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    told = subprocess.run(
        [python(environment), "-c", ask], check=True, capture_output=True, text=True
    )
    line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    Path(told.stdout.strip(), "main-environment.pth").write_text(line, encoding="utf-8")


def write_specification(environment: Path, share: Path) -> None:
    """Make `python3` of the environment's kernels its own Python, not the server's."""
    folder = share / "kernels" / "python3"
    folder.mkdir(parents=True, exist_ok=True)
    specification = {
        "argv": [str(python(environment)), "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Colab's versions",
        "language": "python",
    }
    (folder / "kernel.json").write_text(json.dumps(specification, indent=1), encoding="utf-8")


def has_pinned_versions(environment: Path) -> bool:
    """Say whether the environment runs, and holds exactly what the pins say."""
    pins = [line.split("==") for line in PINS.read_text("utf-8").split() if "==" in line]
    ask = f"import importlib.metadata as m; assert all(m.version(n) == v for n, v in {pins!r})"
    if not python(environment).exists():
        return False
    return subprocess.run([python(environment), "-c", ask], capture_output=True).returncode == 0


def main() -> None:
    """Make the kernel of Colab's versions where it is missing or other than pinned."""
    if not has_pinned_versions(ENVIRONMENT):
        make_environment(ENVIRONMENT)
        write_specification(ENVIRONMENT, SHARES["colab"])
    print(f"The kernel of Colab's versions runs from {ENVIRONMENT.relative_to(ROOT)}.")


if __name__ == "__main__":
    main()
