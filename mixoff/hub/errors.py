"""What can go wrong on the way to the hub and back, in one sentence each. Knows its errors."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of httpx or httpx2, as the client has it
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mixoff.errors import CheckpointError

NO_NETWORK = (HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled)
OFFLINE = (
    "offline mode is on (HF_HUB_OFFLINE) and it isn't whole in the hub's cache: give a folder, "
    "or unset HF_HUB_OFFLINE once to fetch it"
)
_TOO_MANY_REQUESTS = 429
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_RESET = re.compile(r";\s*t\s*=\s*(\d+)")  # of '"api";r=0;t=55', as the hub has it


@contextmanager
def plain_errors(name: str) -> Iterator[None]:
    """Turn errors of the client, the network and the disk into one sentence each.

    Raises
    ------
    CheckpointError
        In place of them.
    """
    try:
        yield
        return
    except (OSError, HTTPError, HFValidationError) as error:
        reason = _reason(name, error)
    raise CheckpointError(f"{name}: {reason}.")


def is_passing(error: Exception) -> bool:
    """Return whether the hub couldn't be asked now, which says nothing of the repository."""
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
            f"its owner asks for consent first: accept its terms at {page}, then set HF_TOKEN",
        ),
        (
            RepositoryNotFoundError,
            "no folder here, and no such repository on the hub (a private one needs HF_TOKEN)",
        ),
        (
            RevisionNotFoundError,
            f"the repository has no branch, tag or commit {revision!r}: see {page}/commits/main",
        ),
        (HFValidationError, "no folder here, and no name that the hub could have"),
        (RemoteEntryNotFoundError, "a file is missing that the hub lists: try again"),
        (OfflineModeIsEnabled, OFFLINE),
    ]
    for kind, reason in reasons:
        if isinstance(error, kind):
            return reason
    if isinstance(error, HfHubHTTPError):
        return _answer(error)
    if isinstance(error, OSError) and error.errno is not None:
        return _disk(error)
    return (
        f"the hub can't be reached, or the connection broke ({type(error).__name__}): give a "
        "folder, or try again, and what is here already won't be fetched again"
    )


def _answer(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    if status == _TOO_MANY_REQUESTS:
        return f"the hub has had too many requests from here: try again {_when(error)}"
    if status in (401, 403):
        return f"the hub refuses ({status}): set HF_TOKEN to a token with the rights for it"
    return f"the hub answers with an error ({status}): try again later"


def _when(error: HfHubHTTPError) -> str:
    headers = error.response.headers
    found = _RESET.search(headers.get("ratelimit", ""))
    seconds = found[1] if found else headers.get("retry-after", "")
    later = "later; signed in (HF_TOKEN), more requests are allowed"
    return f"in {seconds} seconds" if seconds.isdigit() else later


def _disk(error: OSError) -> str:
    if error.errno in _DISK_FULL:
        return (
            f"the disk is full ({error.filename or constants.HF_HUB_CACHE}): make room, or set "
            "HF_HOME to a folder on another disk, and what is here won't be fetched again"
        )
    if isinstance(error, ConnectionError | TimeoutError):
        return f"the connection broke ({error.strerror}): try again, and it goes on from here"
    return f"{error.filename or constants.HF_HUB_CACHE} can't be used ({error.strerror})"
