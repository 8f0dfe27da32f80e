"""One file from the hub, whole and verified. Knows transfers that break; nothing of checkpoints.

The client's own downloads begin anew after a program ended (since 1.31, a partial file has a name
that nobody finds again), and compare nothing with the hub's hashes. So the file is fetched with the
client's `http_get`, which has its progress bar and its retries, into a partial file that the next
run goes on with.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from huggingface_hub import constants, hf_hub_url
from huggingface_hub.errors import HTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import (
    WeakFileLock,
    build_hf_headers,
    hf_raise_for_status,
    http_stream_backoff,
)

from mixoff.errors import CheckpointError
from mixoff.hub.repository import RemoteFile, Repository
from mixoff.hub.verify import digest_of
from mixoff.units import format_nbytes

_PARTIAL = ".mixoff-partial"
_TRIES = 5  # as many as the client itself has
_MARGIN = 64 << 20  # bytes of a disk that are left free


def download(repository: Repository, file: RemoteFile, target: Path) -> None:
    """Fetch a file, going on with what is there of it, and compare it with the hub's hash.

    Raises
    ------
    CheckpointError
        If what came isn't what the hub lists; nothing of it is left then.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(target)
    with _locked(partial.with_name(f"{partial.name}.lock")):
        if target.exists():  # somebody else fetched it meanwhile
            return
        resumed = partial.exists()
        whole = _continue(repository, file, partial)
        if not whole and resumed:  # perhaps it was our part that was damaged
            whole = _continue(repository, file, partial)
        if not whole:
            raise CheckpointError(
                f"{repository.title}: {file.name} came with other contents than the hub lists "
                "(its hash differs), so it was removed: try again."
            )
        partial.replace(target)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes from the same file; whoever is late finds it whole, or goes on."""
    try:
        with WeakFileLock(path):
            yield
    finally:
        with suppress(OSError):  # Windows, while another process waits for it
            path.unlink(missing_ok=True)


def partial_of(target: Path) -> Path:
    """Return where the part of a file lies that was fetched before the program ended."""
    return target.with_name(target.name + _PARTIAL)


def _continue(repository: Repository, file: RemoteFile, partial: Path) -> bool:
    """Fetch what is missing of a file, and return whether it is the hub's; else remove it."""
    if partial.exists() and partial.stat().st_size > file.nbytes:
        partial.unlink()
    with partial.open("ab") as part:
        http_get(
            file_url(repository, file),
            part,
            resume_size=part.tell(),
            headers=_headers(),
            expected_size=file.nbytes,
            displayed_filename=file.name,
        )
        part.flush()
        os.fsync(part.fileno())
    if digest_of(partial, file.digest) == file.digest:
        return True
    partial.unlink()
    return False


def first_bytes(repository: Repository, file: RemoteFile, nbytes: int) -> bytes:
    """Return how a file on the hub begins, fetching no more than that; broken answers are retried.

    Raises
    ------
    HTTPError
        If the answer stays broken; the client's own errors besides.
    """
    for tries_left in reversed(range(_TRIES)):
        found, broken = _beginning(repository, file, nbytes)
        if broken is None:
            break
        if not tries_left:
            raise broken
    return found


def _beginning(
    repository: Repository, file: RemoteFile, nbytes: int
) -> tuple[bytes, HTTPError | None]:
    found, broken = bytearray(), None
    with http_stream_backoff(
        "GET",
        file_url(repository, file),
        headers={**_headers(), "Range": f"bytes=0-{nbytes - 1}"},
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
    ) as response:
        hf_raise_for_status(response)
        try:
            for chunk in response.iter_bytes():
                found += chunk
                if len(found) >= nbytes:  # a server may know no ranges
                    break
        except HTTPError as error:  # here: the client would begin again, and lose its own error
            broken = error
    return bytes(found[:nbytes]), broken


def file_url(repository: Repository, file: RemoteFile) -> str:
    """Return the address of a file at a repository's commit."""
    return hf_hub_url(
        repository.name, file.name, revision=repository.commit, endpoint=constants.ENDPOINT
    )


def require_room(repository: Repository, files: Iterable[RemoteFile], folder: Path) -> None:
    """Refuse to begin what the disk has no room for.

    Raises
    ------
    CheckpointError
        If there are fewer bytes free than the files need.
    """
    needed = sum(file.nbytes for file in files)
    home = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(home).free
    if needed and needed + _MARGIN > free:
        raise CheckpointError(
            f"{repository.title}: {format_nbytes(needed)} are to be fetched, and {home} has "
            f"{format_nbytes(free)} free: make room, or set HF_HOME to a folder on another disk."
        )


def _headers() -> dict[str, str]:
    # A compressed answer would have other bytes than the part that is here.
    return {**build_hf_headers(), "Accept-Encoding": "identity"}
