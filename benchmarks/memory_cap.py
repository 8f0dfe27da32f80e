"""Runs a command in a control group whose memory is capped, and reports its peak memory.

    .venv/bin/python benchmarks/memory_cap.py 1600MiB COMMAND ...

A control group counts what a process allocates and the page cache of what it reads: a model that is
mapped from its file is capped, too, unlike with limits of address space (`ulimit -v`). Both
versions of Linux's control groups are tried. A group is made below this process's own, or beside it
where version 2 allows none below, and removed at the end; its limit is never above that of the own
group. Where none can be made (no Linux, no rights), commands run without a cap and `Cap.name` says
why.

Version 1 was tested; of version 2, only that it is skipped where it doesn't control memory. Pages
that were in the page cache before are not charged to a group: `evict` drops them first.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mixoff.units import format_nbytes, parse_nbytes

_JOIN = 'echo $$ > "$0" && exec "$@"'  # a shell's own process joins, and becomes the command


@dataclass(frozen=True)
class Files:
    """The file names of one version of control groups."""

    version: int
    limit: str
    peak: str
    events: str  # has a line "oom_kill N"


FILES = (
    Files(1, "memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control"),
    Files(2, "memory.max", "memory.peak", "memory.events"),
)


@dataclass(frozen=True)
class Cap:
    """A control group with a limit, or the reason why there is none.

    Parameters
    ----------
    name
        For a table: "12.00 GiB (control group v1)", or "no cap (...)".
    group
        The group's folder; None without a cap.
    files
        The names of its files.
    """

    name: str
    group: Path | None = None
    files: Files = FILES[0]

    def command(self, words: Sequence[str]) -> list[str]:
        """Return the command that runs another one in the group."""
        if self.group is None:
            return [*words]
        return ["/bin/sh", "-c", _JOIN, str(self.group / "cgroup.procs"), *words]

    @property
    def peak_nbytes(self) -> int | None:
        """The group's peak in bytes, page cache included; None if it isn't known."""
        text = _text(self.group / self.files.peak) if self.group else ""
        return int(text) if text.isdecimal() else None

    @property
    def kills(self) -> int:
        """The number of the group's processes that were killed for memory."""
        lines = _text(self.group / self.files.events).splitlines() if self.group else []
        return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


@dataclass(frozen=True)
class Finished:
    """The result of a capped command: its exit code, its output, and the facts of its `Cap`."""

    returncode: int
    output: str
    cap: str
    peak_nbytes: int | None
    kills: int


def run_capped(
    words: Sequence[str], limit_nbytes: int | None, *, env: Mapping[str, str] | None = None
) -> Finished:
    """Run a command under a cap, or without one for None, and return its result.

    Its stderr is this process's. A return code other than 0 is returned, not raised.
    """
    with memory_cap(limit_nbytes) as cap:
        done = subprocess.run(cap.command(words), stdout=subprocess.PIPE, text=True, env=env)
        return Finished(done.returncode, done.stdout, cap.name, cap.peak_nbytes, cap.kills)


@contextmanager
def memory_cap(limit_nbytes: int | None) -> Iterator[Cap]:
    """Make a control group with a limit in bytes, for the ``with`` block; None is no limit."""
    if limit_nbytes is None:
        yield Cap("no cap (none was asked for)")
        return
    reasons = []
    for files, parent in _parents():
        group = parent / f"mixoff.{os.getpid()}.{time.monotonic_ns()}"
        try:
            group.mkdir()
        except OSError as error:
            reasons.append(f"v{files.version}: {error.strerror}")
            continue
        try:
            reason = _limit(group, files, limit_nbytes)
            if reason is None:
                name = f"{format_nbytes(limit_nbytes)} (control group v{files.version})"
                yield Cap(name, group, files)
                return
            reasons.append(f"v{files.version}: {reason}")
        finally:
            _remove(group)
    yield Cap(f"no cap ({'; '.join(reasons) or 'no control groups of memory here'})")


def evict(*paths: Path) -> None:
    """Drop files, or all files of folders, from the page cache, where the system supports it."""
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*"))]
    for file in files:
        if file.is_file() and hasattr(os, "posix_fadvise"):
            descriptor = os.open(file, os.O_RDONLY)
            with suppress(OSError):
                os.fsync(descriptor)  # dirty pages can't be dropped
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _parents() -> Iterator[tuple[Files, Path]]:
    """Yield the folders in which a group can be made, this process's own first."""
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            yield FILES[0], Path("/sys/fs/cgroup/memory", path.lstrip("/"))
        elif not controllers:
            for mount in map(Path, ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")):
                own = mount / path.lstrip("/")
                if (own / "cgroup.procs").exists():
                    yield from [
                        (FILES[1], folder) for folder in (own, own.parent)[: 1 + (own != mount)]
                    ]


def _limit(group: Path, files: Files, nbytes: int) -> str | None:
    """Set a group's limit, at most that of this process's group; return what failed, or None."""
    if not (group / files.limit).exists():  # version 2, in a parent that doesn't delegate memory
        return "memory isn't controlled here"
    own = [_text(folder / files.limit) for folder in _own(files)]
    least = min([nbytes, *(int(limit) for limit in own if limit.isdecimal())])
    if least < nbytes:
        return f"the own group allows {format_nbytes(least)}"
    try:
        (group / files.limit).write_text(str(nbytes))
        with suppress(OSError):  # memory that is swapped out would escape the limit
            (group / "memory.swap.max").write_text("0")
    except OSError as error:
        return error.strerror or "refused"
    joins = ["/bin/sh", "-c", _JOIN, str(group / "cgroup.procs"), "true"]
    done = subprocess.run(joins, stderr=subprocess.DEVNULL, check=False)
    return "processes can't join" if done.returncode else None


def _own(files: Files) -> list[Path]:
    return [parent for version, parent in _parents() if version is files][:1]


def _remove(group: Path) -> None:
    with suppress(OSError):
        (group / "memory.force_empty").write_text("0")  # version 1: frees the page cache
    for _ in range(50):
        with suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.1)  # its last process may just be ending
    print(f"{group}: can't be removed", file=sys.stderr)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    done = run_capped(sys.argv[2:], parse_nbytes(sys.argv[1]))
    print(done.output, end="")
    peak = "unknown" if done.peak_nbytes is None else format_nbytes(done.peak_nbytes)
    print(f"cap {done.cap}, peak {peak}, {done.kills} killed", file=sys.stderr)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
