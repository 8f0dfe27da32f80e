"""A JupyterLab server with a fresh configuration and a free port, which leaves no files behind."""

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

SILENCE = 300  # seconds without a client after which a server ends by itself
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
    "notebook-extension/tracker": {"windowingMode": "none"},  # else cells out of sight are hidden
}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def fresh_environment(home: Path, share: Path | None) -> dict[str, str]:
    """Return this process's environment with all of Jupyter's folders inside `home`."""
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
    settings = {"HF_HUB_OFFLINE": "1", "MPLCONFIGDIR": str(home / "matplotlib")}
    return {**os.environ, **folders, **settings, "JUPYTER_PATH": str(share or "")}


def wait_for_answer(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Return when the server answers; raise its log if it ends, or is silent for a minute."""
    until = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < until:
        try:
            urllib.request.urlopen(f"{address}/api", timeout=1).close()
            return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.1)
    raise RuntimeError(f"JupyterLab doesn't answer:\n{log.read_text(errors='replace')[-3000:]}")


def end(server: subprocess.Popen[bytes]) -> None:
    """End the server, which ends its kernels; kill it after 20 seconds."""
    server.terminate()
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


@contextmanager
def jupyter_lab(root: Path, share: Path | None = None) -> Iterator[str]:
    """Serve the notebooks in `root`; yield the server's address.

    The kernels and the front end in `share` take precedence over this environment's.
    """
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    place = (f"--ServerApp.port={port}", f"--ServerApp.root_dir={root}")
    command = [sys.executable, "-m", "jupyterlab", *OPTIONS, *place]
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
