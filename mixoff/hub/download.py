"""Downloads of single files from the hub, complete and verified. Knows nothing of checkpoints.

The client's own downloads start over after a process was killed (since 1.31, a partial file's name
isn't reused), and compare nothing with the hub's hashes. So a file is fetched with the client's
`http_get`, which has its progress bar and its retries, into a partial file that the next run
resumes.
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
_ATTEMPTS = 5  # as many as the client's own
_MARGIN = 64 << 20  # bytes of a disk that stay free


def download(repository: Repository, file: RemoteFile, target: Path) -> None:
    """Fetch a file, resuming a partial one, and compare it with the hub's hash.

    Raises
    ------
    CheckpointError
        If the contents differ from what the hub lists; the file is removed then.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(target)
    with _locked(partial.with_name(f"{partial.name}.lock")):
        if target.exists():  # another process fetched it meanwhile
            return
        resumed = partial.exists()
        matches = _fetch_rest(repository, file, partial)
        if not matches and resumed:  # the part that was here may have been damaged
            matches = _fetch_rest(repository, file, partial)
        if not matches:
            raise CheckpointError(
                f"{repository.title}: {file.name} arrived with other contents than the hub lists "
                "(its hash differs), so it was removed: try again."
            )
        partial.replace(target)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Exclude other processes from the same file; a later one finds it complete, or resumes it."""
    try:
        with WeakFileLock(path):
            yield
    finally:
        with suppress(OSError):  # on Windows, while another process waits for the lock
            path.unlink(missing_ok=True)


def partial_of(target: Path) -> Path:
    """Return the path of a file's partial download, which the next run resumes."""
    return target.with_name(target.name + _PARTIAL)


def _fetch_rest(repository: Repository, file: RemoteFile, partial: Path) -> bool:
    """Fetch the missing bytes; return whether the hash matches, and remove the file if not."""
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
    """Return the first bytes of a file on the hub, and fetch no more; a broken answer is retried.

    Raises
    ------
    HTTPError
        If every answer breaks; the client's own errors besides.
    """
    for attempts_left in reversed(range(_ATTEMPTS)):
        content, error = _try_first_bytes(repository, file, nbytes)
        if error is None:
            break
        if not attempts_left:
            raise error
    return content


def _try_first_bytes(
    repository: Repository, file: RemoteFile, nbytes: int
) -> tuple[bytes, HTTPError | None]:
    """Return the bytes that arrived, and the error that broke the answer, if one did."""
    content, broken = bytearray(), None
    with http_stream_backoff(
        "GET",
        file_url(repository, file),
        headers={**_headers(), "Range": f"bytes=0-{nbytes - 1}"},
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
    ) as response:
        hf_raise_for_status(response)
        try:
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) >= nbytes:  # a server without ranges sends the whole file
                    break
        except HTTPError as error:  # inside the `with`: its generator would retry, and lose this
            broken = error
    return bytes(content[:nbytes]), broken


def file_url(repository: Repository, file: RemoteFile) -> str:
    """Return the address of a file at a repository's commit."""
    return hf_hub_url(
        repository.name, file.name, revision=repository.commit, endpoint=constants.ENDPOINT
    )


def require_room(repository: Repository, files: Iterable[RemoteFile], folder: Path) -> None:
    """Refuse a download that the disk has no room for.

    Raises
    ------
    CheckpointError
        If the files need more bytes than are free.
    """
    needed = sum(file.nbytes for file in files)
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed and needed + _MARGIN > free:
        raise CheckpointError(
            f"{repository.title}: {format_nbytes(needed)} are to be fetched, and {existing} has "
            f"{format_nbytes(free)} free: make room, or set HF_HOME to a folder on another disk."
        )


def _headers() -> dict[str, str]:
    # A compressed answer's bytes would not continue those of the partial file.
    return {**build_hf_headers(), "Accept-Encoding": "identity"}
