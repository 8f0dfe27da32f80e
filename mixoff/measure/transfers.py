"""Transfer times of records between the tiers of this machine, by size. Knows clocks; no models."""

import os
import random
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from mixoff.errors import ConfigError
from mixoff.measure.transfer_paths import CAN_DROP, FromDisk, Route, ToDevice, WithinHost
from mixoff.tiers.aligned import PAGE, align
from mixoff.tiers.queue import Transfers
from mixoff.tiers.streams import Cuda, Device
from mixoff.units import format_nbytes

if TYPE_CHECKING:
    import pandas as pd

SIZES = tuple(4096 << (2 * power) for power in range(7))  # 4 KiB to 16 MiB
_REPEATED_BELOW = 1 << 20  # bytes: smaller records are moved several times a round
_MOST_REPEATS = 8
_MS, _GB = 1e-3, 1e9


def transfers(
    device: str | torch.device | Device = "cpu",
    *,
    folder: str | Path | None = None,
    sizes: Iterable[int] = SIZES,
    in_flight: Iterable[int] = (1, 4),
    rounds: int = 7,
    seconds: float = 4.0,
) -> "pd.DataFrame":
    """Return the transfer time of records of each size between the tiers of this machine.

    Every round measures all paths and sizes, so that other load on the machine affects all alike.
    The first round warms up and isn't counted; after `seconds` no further round begins, but one is
    always counted. Two files of random bytes, each as large as the records in flight of the largest
    size, are written and removed.

    From disk to host memory, records are read with direct I/O; buffered, with the file in the page
    cache, since it was just written; and buffered, after the file was dropped from the page cache.
    Within host memory they are copied, which mixoff itself doesn't do where the device is the CPU:
    there it passes buffers on. With a GPU they are copied from pinned and from pageable host memory
    to the device and back. Methods that a file system or a driver refuses are left out, and
    ``attrs["notes"]`` says why. A cache inside the disk can't be detected.

    Parameters
    ----------
    device
        "cpu", or a GPU whose paths are measured, too.
    folder
        A folder for temporary files, on the checkpoint's disk. By default the system's folder for
        them, which may be in memory.
    sizes
        Bytes of a record.
    in_flight
        Numbers of records that are transferred concurrently, each by its own thread.
    rounds
        The most rounds that are counted.
    seconds
        The time after which no further round begins.

    Returns
    -------
    pandas.DataFrame
        A row for each path, number in flight and size: source, target, method ("direct",
        "buffered", "copied", "pinned", "pageable"), page_cache (the file's state in it),
        in_flight, nbytes (of a record), samples; ms, ms_min, ms_max: median, least and most
        milliseconds from the submission until the last record in flight arrived; gb_per_s,
        gb_per_s_min, gb_per_s_max: the bytes of all in flight over that time, 1e9 bytes a second.

    Raises
    ------
    ConfigError
        If a number is below 1, or the folder can't be written to.
    """
    sizes, in_flight = _checked("sizes", sizes), _checked("in_flight", in_flight)
    _checked("rounds", [rounds])
    with ExitStack() as stack:
        nbytes = align(max(sizes), PAGE) * max(in_flight)
        files = stack.enter_context(_random_files(folder, nbytes))
        threads = {number: stack.enter_context(closing(Transfers(number))) for number in in_flight}
        cells = [
            _Cell(stack.enter_context(closing(route)), size, number)
            for size, number in product(sizes, in_flight)
            for route in _routes(files, size, threads[number], device)
        ]
        _measure_rounds(cells, rounds, seconds)
        return _table(cells)


class _Cell:
    """The measurements of one route with one size and number in flight."""

    def __init__(self, route: Route, nbytes: int, in_flight: int) -> None:
        self.route = route
        self._nbytes = nbytes
        self._in_flight = in_flight
        self._samples: list[list[float]] = []  # seconds, for each path
        self._random = random.Random(nbytes + in_flight)  # the same records on all routes

    def measure(self) -> None:
        """Move records once, or small ones several times, and add the samples."""
        for _ in range(min(_MOST_REPEATS, max(1, _REPEATED_BELOW // self._nbytes))):
            records = self._random.sample(range(self.route.num_records), self._in_flight)
            self._samples.append(self.route.move(records))

    def clear(self) -> None:
        """Drop all samples."""
        self._samples.clear()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a row of the table for each path."""
        moved = self._nbytes * self._in_flight / _GB
        for path, seconds in zip(self.route.paths, zip(*self._samples, strict=True), strict=True):
            middle, least, most = median(seconds), min(seconds), max(seconds)
            yield {
                **vars(path),
                "in_flight": self._in_flight,
                "nbytes": self._nbytes,
                "samples": len(seconds),
                "ms": middle / _MS,
                "ms_min": least / _MS,
                "ms_max": most / _MS,
                "gb_per_s": moved / middle,
                "gb_per_s_min": moved / most,
                "gb_per_s_max": moved / least,
            }


def _measure_rounds(cells: list[_Cell], rounds: int, seconds: float) -> None:
    for cell in cells:
        cell.measure()
        cell.clear()
    deadline = perf_counter() + seconds
    for number in range(rounds):
        if number and perf_counter() > deadline:
            return
        for cell in cells:
            cell.measure()


def _table(cells: list[_Cell]) -> "pd.DataFrame":
    import pandas as pd

    refusals = [cell.route.refusal() for cell in cells]
    measured = [cell for cell, refusal in zip(cells, refusals, strict=True) if refusal is None]
    rows = [row for cell in measured for row in cell.rows()]
    keys = ["source", "target", "method", "page_cache", "in_flight", "nbytes"]
    table = pd.DataFrame(rows).sort_values(keys, ignore_index=True)
    table.attrs["notes"] = tuple(dict.fromkeys(filter(None, refusals)))
    return table


def _routes(
    files: tuple[Path, Path],
    nbytes: int,
    transfers: Transfers,
    device: str | torch.device | Device,
) -> Iterator[Route]:
    """Yield all routes of this machine."""
    cached, uncached = files
    num_records = cached.stat().st_size // align(nbytes, PAGE)
    yield FromDisk(cached, nbytes, num_records, transfers, "buffered")
    yield FromDisk(uncached, nbytes, num_records, transfers, "direct")
    if CAN_DROP:
        yield FromDisk(uncached, nbytes, num_records, transfers, "dropped")
    yield WithinHost(nbytes, transfers)
    if isinstance(device, str | torch.device):
        if torch.device(device).type == "cpu":
            return
        device = Cuda(torch.device(device))
    for pinned in (True, False):
        yield ToDevice(cached, nbytes, transfers, device, pinned=pinned)


@contextmanager
def _random_files(folder: str | Path | None, nbytes: int) -> Iterator[tuple[Path, Path]]:
    """Write two temporary files of random bytes; only the second is ever dropped from the cache."""
    parent = Path(folder or tempfile.gettempdir())
    with ExitStack() as stack:
        try:
            temporary = tempfile.TemporaryDirectory(prefix="mixoff-", dir=parent)
            target = Path(stack.enter_context(temporary))
            files = target / "cached", target / "uncached"
            for seed, file in enumerate(files):
                _write(file, random.Random(seed).randbytes(nbytes))
        except OSError as error:
            raise ConfigError(
                f"folder={str(parent)!r}: twice {format_nbytes(nbytes)} can't be written there "
                f"({error.strerror}): give another folder, or smaller sizes."
            ) from error
        yield files


def _write(file: Path, content: bytes) -> None:
    with file.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())  # otherwise the disk is still writing while reads are measured


def _checked(name: str, numbers: Iterable[int]) -> list[int]:
    listed = list(numbers)
    if not listed or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in listed):
        raise ConfigError(f"{name}={listed}: give whole numbers from 1 up.")
    return listed
