"""Errors of the hub's client, the network and the disk, in one sentence each.

Knows their types and status codes; nothing of checkpoints.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of httpx or httpx2, whichever the client uses
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mixoff.errors import CheckpointError

NO_NETWORK = (HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled)
OFFLINE = (
    "offline mode is on (HF_HUB_OFFLINE) and it isn't complete in the hub's cache: give a folder, "
    "or unset HF_HUB_OFFLINE once to fetch it"
)
_TOO_MANY_REQUESTS = 429
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_RESET = re.compile(r";\s*t\s*=\s*(\d+)")  # seconds, in the hub's header '"api";r=0;t=55'


@contextmanager
def plain_errors(name: str) -> Iterator[None]:
    """Raise errors of the client, the network and the disk as one sentence each.

    Raises
    ------
    CheckpointError
        In place of those errors.
    """
    try:
        yield
        return
    except (OSError, HTTPError, HFValidationError) as error:
        reason = _reason(name, error)
    raise CheckpointError(f"{name}: {reason}.")


def is_temporary(error: Exception) -> bool:
    """Return whether the hub is unavailable now, which says nothing about the repository."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status == _TOO_MANY_REQUESTS or status >= 500
    return isinstance(error, NO_NETWORK)


def _reason(name: str, error: Exception) -> str:
    repository, _, revision = name.partition("@")
    page = f"{constants.ENDPOINT}/{repository}"
    reasons: list[tuple[type[Exception], str]] = [
        (
            GatedRepoError,
            f"its owner requires consent first: accept its terms at {page}, then set HF_TOKEN",
        ),
        (
            RepositoryNotFoundError,
            "no folder here, and no such repository on the hub (a private one needs HF_TOKEN)",
        ),
        (
            RevisionNotFoundError,
            f"the repository has no branch, tag or commit {revision!r}: see {page}/commits/main",
        ),
        (HFValidationError, "no folder here, and not a valid repository name on the hub"),
        (RemoteEntryNotFoundError, "a file that the hub lists is missing there: try again"),
        (OfflineModeIsEnabled, OFFLINE),
    ]
    for kind, reason in reasons:
        if isinstance(error, kind):
            return reason
    if isinstance(error, HfHubHTTPError):
        return _http_reason(error)
    if isinstance(error, OSError) and error.errno is not None:
        return _os_reason(error)
    return (
        f"the hub can't be reached, or the connection broke ({type(error).__name__}): give a "
        "folder, or try again; what was fetched already won't be fetched again"
    )


def _http_reason(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    if status == _TOO_MANY_REQUESTS:
        return f"the hub got too many requests from here: try again {_retry_time(error)}"
    if status in (401, 403):
        return f"the hub refuses ({status}): set HF_TOKEN to a token with the needed rights"
    return f"the hub answers with an error ({status}): try again later"


def _retry_time(error: HfHubHTTPError) -> str:
    headers = error.response.headers
    match = _RESET.search(headers.get("ratelimit", ""))
    seconds = match[1] if match else headers.get("retry-after", "")
    later = "later; with a token (HF_TOKEN), more requests are allowed"
    return f"in {seconds} seconds" if seconds.isdigit() else later


def _os_reason(error: OSError) -> str:
    if error.errno in _DISK_FULL:
        return (
            f"the disk is full ({error.filename or constants.HF_HUB_CACHE}): make room, or set "
            "HF_HOME to a folder on another disk; what was fetched won't be fetched again"
        )
    if isinstance(error, ConnectionError | TimeoutError):
        return f"the connection broke ({error.strerror}): try again, and it resumes from here"
    return f"{error.filename or constants.HF_HUB_CACHE} can't be used ({error.strerror})"
