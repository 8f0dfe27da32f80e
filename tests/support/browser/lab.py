"""A JupyterLab server of one's own: a fresh configuration, a free port, nothing left behind."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SILENCE = 300  # seconds without a reader after which a server ends by itself, if nobody ends it
OPTIONS = (
    "--no-browser",
    "--allow-root",
    "--ServerApp.ip=127.0.0.1",
    "--ServerApp.port_retries=0",
    "--IdentityProvider.token=",
    "--ServerApp.password=",
    "--ServerApp.disable_check_xsrf=True",
    "--LabApp.expose_app_in_browser=True",
    f"--ServerApp.shutdown_no_activity_timeout={SILENCE}",
    f"--MappingKernelManager.cull_idle_timeout={SILENCE}",
    "--MappingKernelManager.cull_connected=True",
)
FOLDERS = (
    "JUPYTER_CONFIG_DIR",
    "JUPYTER_DATA_DIR",
    "JUPYTER_RUNTIME_DIR",
    "IPYTHONDIR",
    "JUPYTERLAB_SETTINGS_DIR",
    "JUPYTERLAB_WORKSPACES_DIR",
)
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},  # else what is out of sight is hidden
}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def fresh_environment(home: Path, share: Path | None) -> dict[str, str]:
    """Return this process's environment with every folder of Jupyter's inside `home`."""
    folders = {name: str(home / name.lower()) for name in FOLDERS}
    for folder in folders.values():
        Path(folder).mkdir()
    for name, settings in SETTINGS.items():
        path = Path(
            folders["JUPYTERLAB_SETTINGS_DIR"], "@jupyterlab", f"{name}.jupyterlab-settings"
        )
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(settings))
    (home / "matplotlib").mkdir()
    other = {"HF_HUB_OFFLINE": "1", "MPLCONFIGDIR": str(home / "matplotlib")}
    return {**os.environ, **folders, **other, "JUPYTER_PATH": str(share or "")}


def wait_for_answer(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Return when the server answers; if it ends or stays silent for a minute, tell its log."""
    until = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < until:
        try:
            urllib.request.urlopen(f"{address}/api", timeout=1).close()
            return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.1)
    raise RuntimeError(f"JupyterLab doesn't answer:\n{log.read_text(errors='replace')[-3000:]}")


def end(server: subprocess.Popen[bytes]) -> None:
    """End the server, which ends its kernels; if it can't within 20 seconds, kill it."""
    server.terminate()
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


@contextmanager
def jupyter_lab(root: Path, share: Path | None = None) -> Iterator[str]:
    """Serve the notebooks in `root`; yield the server's address.

    `share` holds kernels and a front end that go before those of this environment.
    """
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    here = (f"--ServerApp.port={port}", f"--ServerApp.root_dir={root}")
    command = [sys.executable, "-m", "jupyterlab", *OPTIONS, *here]
    with tempfile.TemporaryDirectory(prefix="mixoff-lab-", ignore_cleanup_errors=True) as home:
        log = Path(home, "lab.log")
        environment = fresh_environment(Path(home), share)
        with log.open("wb") as written:
            server = subprocess.Popen(
                command, cwd=root, env=environment, stdout=written, stderr=subprocess.STDOUT
            )
        try:
            wait_for_answer(server, address, log)
            yield address
        finally:
            end(server)
