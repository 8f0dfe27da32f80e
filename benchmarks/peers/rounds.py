"""Rounds of workers, each in its own process, with capped memory; and tables of their results.

Knows processes, control groups and the page cache; knows nothing of models.
"""

import json
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
_EVERY_SECONDS = 0.02  # memory is read
_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


@dataclass
class Arm:
    """One of the compared programs: a Python, the worker's script, its settings, and its results.

    Parameters
    ----------
    files
        Its model's file or folder, which is dropped from the page cache before each run.
    """

    name: str
    python: Path
    worker: str
    settings: dict[str, Any]
    files: Path | None = None
    results: list[dict[str, Any]] = field(default_factory=list)
    failure: str = ""

    def words(self) -> list[str]:
        return [str(self.python), str(HERE / self.worker), json.dumps(self.settings)]


def environment(threads: int, *, alone: bool) -> dict[str, str]:
    """Return the environment variables of all workers: the number of threads above all.

    The threads of a worker that waits while another one computes must sleep. A worker that runs
    alone has the default, as its users do: threads that spin from one product to the next.
    """
    count = str(threads)
    return {
        **os.environ,
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        **({} if alone else {"OMP_WAIT_POLICY": "passive"}),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def nbytes_of(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def evict(path: Path) -> None:
    """Drop a model's files from the page cache; pages that a process has mapped stay."""
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@dataclass(frozen=True)
class Group:
    """A control group whose memory is limited, the page cache included."""

    folder: Path
    version: int

    def peak(self) -> int | None:
        """Return the peak of memory in bytes, if the kernel reports it."""
        name = "memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"
        with suppress(OSError):
            return int((self.folder / name).read_text())
        return None


@contextmanager
def capped(nbytes: int | None) -> Iterator[Group | None]:
    """Make a control group for a worker; yield None where that isn't possible."""
    group = _new_group(nbytes) if nbytes is not None else None
    try:
        yield group
    finally:
        if group is not None:
            with suppress(OSError):
                if group.version == 1:
                    (group.folder / "memory.force_empty").write_text("0")
            for _ in range(50):  # a process that has just ended may still be in it
                with suppress(OSError):
                    group.folder.rmdir()
                    break
                time.sleep(0.1)


def _new_group(nbytes: int) -> Group | None:
    for version, parent in _parents():
        folder = parent / f"mixoff-benchmark.{os.getpid()}"
        limit = folder / ("memory.limit_in_bytes" if version == 1 else "memory.max")
        try:
            folder.mkdir()
            if not limit.exists():  # the parent doesn't control memory
                raise FileNotFoundError(limit)
            limit.write_text(str(nbytes))
            if version == 2:
                with suppress(OSError):
                    (folder / "memory.swap.max").write_text("0")
            return Group(folder, version)
        except OSError:
            with suppress(OSError):
                folder.rmdir()
    return None


def _parents() -> Iterator[tuple[int, Path]]:
    """Yield folders for a group: below this process's own group, or, in version 2, beside it."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            yield 1, _V1 / path.lstrip("/")
        elif hierarchy == "0":
            own = _V2 / path.lstrip("/")
            yield from ((2, folder) for folder in (own, own.parent))


class Worker:
    """A worker's process. It prints results, one line of JSON at a time."""

    def __init__(
        self, arm: Arm, threads: int, group: Group | None = None, *, alone: bool = False
    ) -> None:
        def enter() -> None:
            assert group is not None
            (group.folder / "cgroup.procs").write_text(str(os.getpid()))

        self._log = Path(arm.settings["scratch"]) / f"{Path(arm.worker).name}.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                arm.words(),
                env=environment(threads, alone=alone),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                preexec_fn=enter if group else None,
            )
        self.anonymous_kb = 0
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def line(self) -> dict[str, Any]:
        """Return the next line.

        Raises
        ------
        ChildProcessError
            If the worker ended without one; the message says how it ended.
        """
        assert self.process.stdout
        if text := self.process.stdout.readline():
            return json.loads(text)
        code = self.process.wait()
        if code == -9:
            raise ChildProcessError("killed (out of memory)")
        last = (self._log.read_text(errors="replace").strip().splitlines() or [""])[-1]
        raise ChildProcessError(f"ended with {code}: {last[:120]}")

    def run(self, first: int, count: int) -> list[float]:
        """Run `count` numbers from `first` on, one after the other; return the seconds of each."""
        assert self.process.stdin
        self.process.stdin.write(f"{first} {count}\n")
        self.process.stdin.flush()
        return [float(seconds) for seconds in self.line()["seconds"]]

    def close(self) -> None:
        """End the process."""
        self._ended.set()
        assert self.process.stdin
        assert self.process.stdout
        with suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self._watcher.join()

    def _watch(self) -> None:
        status = Path(f"/proc/{self.process.pid}/status")
        while not self._ended.wait(_EVERY_SECONDS):
            with suppress(OSError):
                for line in status.read_text().splitlines():
                    if line.startswith("RssAnon:"):
                        self.anonymous_kb = max(self.anonymous_kb, int(line.split()[1]))


def run_once(arm: Arm, threads: int, cap: int | None, *, timeout_s: float = 600) -> None:
    """Run an arm once in a new process, with its files dropped from the page cache."""
    if not arm.python.exists():
        arm.failure = "no environment"
    if arm.failure:
        return
    if arm.files is not None:
        evict(arm.files)
    with capped(cap) as group:
        worker = Worker(arm, threads, group, alone=True)
        timer = threading.Timer(timeout_s, worker.process.kill)
        timer.start()
        try:
            result = worker.line()
        except ChildProcessError as error:
            arm.failure = str(error)
            return
        finally:
            timer.cancel()
            worker.close()
        result["anonymous_kb"] = worker.anonymous_kb
        result["capped"] = group is not None
        result["group_peak"] = group.peak() if group else None
    arm.results.append(result)


def run_rounds(
    arms: Sequence[Arm],
    threads: int,
    rounds: int,
    cap: int | None = None,
    *,
    on_progress: Callable[[str], None] = lambda text: print(text, flush=True),
) -> None:
    """Run all arms once in every round, in an order that is reversed from round to round."""
    for number in range(rounds):
        for arm in arms if number % 2 == 0 else arms[::-1]:
            began = time.perf_counter()
            run_once(arm, threads, cap)
            speed = arm.failure or f"{decoded_per_s(arm.results[-1]):.2f} tokens/s"
            seconds = time.perf_counter() - began
            on_progress(f"  {number}: {arm.name}: {speed}, {seconds:.0f} s in all")


def decoded_per_s(result: dict[str, Any]) -> float:
    """Return the tokens a second that a worker decoded."""
    return len(result["best"]) / float(result["decode_s"])


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Return the median of some values, and their range."""
    listed = [*values]
    if not listed:
        return "-"
    middle = statistics.median(listed)
    return f"{middle:.{digits}f} ({min(listed):.{digits}f} - {max(listed):.{digits}f})"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table in Markdown, its columns aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, ["-" * width for width in widths], *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(f"| {' | '.join(cells)} |")


def machine() -> str:
    """Return the processor, the number of cores and the load, for a table's title."""
    name = "unknown processor"
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}"
