"""The best number of kernel threads while records arrive: one for each core, or one fewer.

Run it from the root of a clone, on an otherwise idle machine:
``.venv/bin/python benchmarks/threads.py``. It writes 0.8 GB of records into ``--folder`` and
deletes them at the end.

A token goes through 4 layers of 8 experts and 4 slots. A layer computes a resident matrix, as
attention does, and two experts of 4 bits from their packed weights, 25 MB each, with mixoff's
kernels. Its experts are those of the previous token with a probability of 0.6, and the next layer's
are guessed rightly, so that the transfer thread works beside compute. Records are read from disk
past the page cache ("direct"), or through it, where each token begins with a file that was dropped
from it ("uncached") or is in it ("cached"), or they are copied within host memory ("memory"); with
"none" each record has a slot, and nothing moves.

Arms: *all* threads that torch is set to (``--threads``, by default one for each core); *one fewer*;
*while moving*, one fewer if a transfer is in flight when an expert begins; and *mixoff*, what the
package does: one fewer while a read through the page cache is in flight. Every round runs all arms,
with the same demands. Printed are milliseconds a token, median, least and most of the rounds, and
the median over rounds of the ratio to *all*.
"""

import argparse
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from kernels import random_matrix
from mixoff import ExpertCache
from mixoff.kernels import kernels_named
from mixoff.quantization import HQQ
from mixoff.tiers.cpu import CpuMover
from mixoff.tiers.disk import DiskReader, Pread
from mixoff.tiers.queue import Transfers
from mixoff.tiers.record import RecordLayout, RecordLocation
from mixoff.tiers.store import RecordStore

LAYERS, EXPERTS, SLOTS = 4, 8, 4
HIDDEN, INNER = 2048, 7168
SCHEME = HQQ(4, 64)
SHAPES = {"gate_up_proj": (2 * INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
LAYOUT = RecordLayout(SCHEME, tuple(SHAPES.items()))
SOURCES = ("none", "direct", "uncached", "cached", "memory")
ARMS = ("all", "one fewer", "while moving", "mixoff")
STAYS = 0.6

Token = list[tuple[int, ...]]  # the experts of each layer


def demands(tokens: int) -> list[Token]:
    """Return the experts that each token needs in each layer."""
    rng = random.Random(0)
    made: list[Token] = []
    for _ in range(tokens):
        before = made[-1] if made else [()] * LAYERS
        made.append(
            [
                old if old and rng.random() < STAYS else tuple(rng.sample(range(EXPERTS), 2))
                for old in before
            ]
        )
    return made


def write_records(folder: Path) -> list[list[RecordLocation]]:
    """Write a file of equal records for each layer."""
    matrices = {name: random_matrix(SCHEME, shape, 0) for name, shape in SHAPES.items()}
    record = LAYOUT.pack(matrices).numpy()
    record = np.pad(record, (0, LAYOUT.stride - len(record)))
    for layer in range(LAYERS):
        with (folder / f"layer-{layer}").open("wb") as file:
            for _ in range(EXPERTS):
                file.write(record.data)
            file.flush()
            os.fsync(file.fileno())
    return [
        [
            RecordLocation(folder / f"layer-{layer}", e * LAYOUT.stride, LAYOUT.nbytes, None)
            for e in range(EXPERTS)
        ]
        for layer in range(LAYERS)
    ]


class Run:
    """A source of records, and the model that needs them."""

    def __init__(self, locations: list[list[RecordLocation]], source: str) -> None:
        self.source = source
        self._files = sorted({location.file for layer in locations for location in layer})
        self._memory = np.fromfile(self._files[0], np.uint8) if source == "memory" else None
        io = "direct" if source == "direct" else "buffered"
        reader = DiskReader(io, pread=self._pread(source))
        mover = CpuMover(RecordStore(locations, reader), Transfers(), nbytes=LAYOUT.nbytes)
        slots = EXPERTS if source == "none" else SLOTS
        layouts = [[LAYOUT] * EXPERTS] * LAYERS
        self.cache = ExpertCache(mover, layouts, slots_per_layer=slots)
        self._transfers = mover.transfers
        self._kernels = kernels_named("cpu")
        self._attention = random_matrix(HQQ(4, 64), (2 * HIDDEN, HIDDEN), 1)
        self._x = torch.randn(1, HIDDEN)

    def _pread(self, source: str) -> Pread | None:
        def copy(_: int, buffers: Sequence[memoryview], offset: int) -> int:
            content = self._memory[offset : offset + len(buffers[0])]
            np.copyto(np.frombuffer(buffers[0], np.uint8)[: len(content)], content)
            return len(content)

        return copy if source == "memory" else None

    def seconds(self, tokens: list[Token], arm: str, threads: int) -> float:
        """Return the seconds of all tokens."""
        torch.set_num_threads(threads - (arm == "one fewer"))
        self._kernels.reserved_threads = (
            self.cache.reserved_threads if arm == "mixoff" else lambda: 0
        )
        began = time.perf_counter()
        for token in tokens:
            if self.source == "uncached":
                self._drop()
            for layer, experts in enumerate(token):
                self._compute_layer(token, layer, experts, threads if arm == ARMS[2] else None)
        return time.perf_counter() - began

    def _compute_layer(
        self, token: Token, layer: int, experts: Sequence[int], threads: int | None
    ) -> None:
        self._set_threads(threads)
        self._kernels.matmul(self._attention, self._x)
        arriving = self.cache.acquire(layer, experts)
        if layer + 1 < LAYERS:
            self.cache.prefetch(layer + 1, token[layer + 1])
        for _, tensors in arriving:
            self._set_threads(threads)
            gate, up = self._kernels.matmul(tensors["gate_up_proj"], self._x).chunk(2, dim=-1)
            self._kernels.matmul(tensors["down_proj"], torch.nn.functional.silu(gate) * up)

    def _set_threads(self, threads: int | None) -> None:
        """Set one thread fewer while a transfer is in flight."""
        if threads is not None:
            moving = self._transfers._running or self._transfers._queue
            torch.set_num_threads(threads - 1 if moving else threads)

    def _drop(self) -> None:
        for path in self._files:
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def measure(folder: Path, tokens: int, rounds: int, threads: int, sources: Sequence[str]) -> None:
    """Measure and print a table."""
    locations, needed = write_records(folder), demands(tokens)
    print("source     arm             ms/token  [least, most]   over all")
    for source in sources:
        run = Run(locations, source)
        times: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for number in range(rounds + 1):  # the first round warms up
            for arm in ARMS:
                seconds = run.seconds(needed, arm, threads)
                times[arm] += [1e3 * seconds / tokens] if number else []
        stats = run.cache.stats()
        run.cache.close()
        for arm, ms in times.items():
            ratio = statistics.median(a / b for a, b in zip(ms, times["all"], strict=True))
            middle, least, most = statistics.median(ms), min(ms), max(ms)
            print(f"{source:10} {arm:14} {middle:9.1f}  [{least:.1f}, {most:.1f}]  {ratio:9.3f}")
        print(
            f"           hit rate {stats.hit_rate:.2f}, waited {stats.wait_ns / 1e9:.1f} s in all"
        )


def main() -> None:
    """Parse options and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--ways", nargs="+", choices=SOURCES, default=list(SOURCES))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mixoff-threads-", dir=options.folder))
    try:
        measure(folder, options.tokens, options.rounds, max(2, options.threads), options.ways)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
