"""The hidden folder in which a conversion lies until it is whole. Knows files, no weights.

Beside the target NAME lies ``.NAME.partial``: its ``conversion.json`` has source and scheme, its
``model`` becomes the target. Each file is written under another name, forced to the disk, and
renamed, so that under its own name it is whole; a resumed conversion checks that nevertheless.
"""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mixoff.errors import CheckpointError, ConfigError
from mixoff.safe_json import read_json

try:
    import fcntl
except ImportError:  # on Windows, which can neither lock a folder nor force one to the disk
    fcntl = None  # type: ignore[assignment]

_RECORD = "conversion.json"
_TEMPORARY = ".tmp"


class PartialFolder:
    """The files of an unfinished conversion, in which one process at a time works.

    Parameters
    ----------
    target
        The folder that it will become.
    facts
        What two runs of the same conversion have in common, as JSON can hold it.
    """

    def __init__(self, target: Path, facts: Mapping[str, Any]) -> None:
        self.target = target
        self.path = target.parent / f".{target.name}.partial"
        self.model = self.path / "model"
        self._facts = facts

    @contextmanager
    def opened(self, *, restart: bool) -> Iterator[None]:
        """Make the folder, or resume it if it is of this conversion, for the length of a block.

        If no finished file is in it at the end, it is removed.

        Raises
        ------
        ConfigError
            If it is of another conversion, or another process works in it.
        """
        absent = [parent for parent in self.target.parents if not parent.exists()]
        with _plain_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        try:
            with self._locked():
                with _plain_errors(self.path):
                    self._begin(restart)
                try:
                    yield
                finally:
                    with suppress(OSError):
                        self._leave()
        finally:
            with suppress(OSError):  # the first that isn't empty
                for folder in (self.path, *absent):
                    folder.rmdir()

    def was_finished(self) -> bool:
        """Return whether the target is whole, and only `clean_up` was interrupted."""
        with suppress(CheckpointError, OSError):
            same = read_json(self.path / _RECORD) == self._facts
            return same and self.target.is_dir() and not self.model.exists()
        return False

    def clean_up(self, *, only_if_empty: bool = False) -> None:
        """Remove the folder after the target was made."""
        with suppress(OSError):
            for entry in [] if only_if_empty else [*self.path.iterdir()]:
                entry.unlink()
            self.path.rmdir()

    def files(self) -> list[Path]:
        """Return the model's files that exist."""
        with _plain_errors(self.model):
            return sorted(self.model.iterdir())

    def remove(self, file: Path) -> None:
        """Remove a file of the model."""
        with _plain_errors(file):
            file.unlink()

    @contextmanager
    def publishing(self, name: str) -> Iterator[Path]:
        """Yield a path to write a file of the model to, and to force to the disk."""
        path = self.model / name
        with _plain_errors(path), self._replacing(path) as temporary:
            yield temporary

    def finish(self) -> None:
        """Let the model become the target.

        Raises
        ------
        CheckpointError
            If it can't, as when something else has that name by now.
        """
        with _plain_errors(self.target):
            _force(self.model)
            self.model.rename(self.target)
            _force(self.target.parent)
        self.clean_up()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes out, where the file system can lock a folder."""
        if fcntl is None:
            yield
            return
        with _plain_errors(self.path):
            descriptor = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"{self.path}: another process converts to {self.target} just now: "
                    "wait until it is done, or give another target."
                ) from None
            except OSError:  # a file system without locks: temporary names differ by process
                pass
            with _plain_errors(self.path):
                is_same = os.path.samestat(os.fstat(descriptor), self.path.stat())
            if not is_same or self.target.exists():
                raise ConfigError(f"{self.target}: another process has just made it.")
            yield
        finally:
            os.close(descriptor)

    def _begin(self, restart: bool) -> None:
        if restart:
            self._clear()
        record = self.path / _RECORD
        if record.exists():
            self._refuse_others(record)
        elif self.model.exists() and any(self.model.iterdir()):
            raise ConfigError(self._occupied("holds files, but not what they are of"))
        else:
            with self._replacing(record) as temporary:
                write_durably(temporary, json.dumps(self._facts, indent=2) + "\n")
        self.model.mkdir(exist_ok=True)
        for left in self.path.glob(f".*{_TEMPORARY}"):
            left.unlink(missing_ok=True)
        _force(self.path)
        _force(self.path.parent)

    def _refuse_others(self, record: Path) -> None:
        try:
            record_facts = read_json(record)
        except CheckpointError:
            raise ConfigError(self._occupied("can't be read any more")) from None
        for name, fact in self._facts.items():
            if record_facts.get(name) != fact:
                raise ConfigError(self._occupied(f"is of another {name}"))

    def _occupied(self, why: str) -> str:
        return (
            f"{self.path}: an unfinished conversion to {self.target} {why}: finish it as it was "
            "begun, give another target, or throw it away with restart (--restart)."
        )

    def _leave(self) -> None:
        """Keep the folder if a file is finished, else empty it."""
        if self.model.exists() and not any(self.model.iterdir()):
            self.model.rmdir()
            (self.path / _RECORD).unlink()

    def _clear(self) -> None:
        for folder in (self.model, self.path):
            for entry in [*folder.iterdir()] if folder.exists() else []:
                if entry != self.model:
                    entry.unlink()

    @contextmanager
    def _replacing(self, path: Path) -> Iterator[Path]:
        # Not in the model's folder, which another process may rename to the target at this moment.
        temporary = self.path / f".{path.name}.{os.getpid()}{_TEMPORARY}"
        try:
            yield temporary
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _force(path.parent)


def write_durably(path: Path, content: str | bytes) -> None:
    """Write a small file and force it to the disk."""
    raw = content.encode() if isinstance(content, str) else content
    with path.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())


def _force(folder: Path) -> None:
    """Force a folder's list of names to the disk."""
    if fcntl is None:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _plain_errors(path: Path) -> Iterator[None]:
    """Turn the system's errors into one sentence each, which names a path."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = ": make room, then do the same again to go on" if full else ""
        raise CheckpointError(f"{path}: can't be written ({error.strerror}){advice}.") from error


@contextmanager
def named_errors(otherwise: Path) -> Iterator[None]:
    """Turn the system's errors into one sentence each, where nothing inside the block did."""
    try:
        yield
    except OSError as error:
        name = error.filename or otherwise
        raise CheckpointError(f"{name}: can't be read or written ({error.strerror}).") from error
