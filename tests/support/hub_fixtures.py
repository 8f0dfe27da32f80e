"""The fake hub as a fixture: the real client, with the fake hub as its only endpoint."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import close_session, constants

from support.hub_server import Hub, hub_server


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Run a fake hub for this process's client, which has an empty cache and no token."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    with hub_server() as server:
        settings = {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "home" / "hub"),
            "HF_TOKEN_PATH": str(tmp_path / "home" / "token"),
            "HF_STORED_TOKENS_PATH": str(tmp_path / "home" / "stored_tokens"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "DOWNLOAD_CHUNK_SIZE": 4096,  # a broken connection leaves complete chunks
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        # The client has no setting for the wait between its attempts.
        for module in ("file_download", "utils._http"):
            monkeypatch.setattr(f"huggingface_hub.{module}.time", SimpleNamespace(sleep=_no_wait))
        close_session()
        yield server
        close_session()


def _no_wait(seconds: float) -> None:
    """Return at once."""


def process_environment(hub: Hub, home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a process whose client uses the fake hub."""
    removed = ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_OIDC_RESOURCE")
    inherited = {name: value for name, value in os.environ.items() if name not in removed}
    return inherited | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **more,
    }
