"""Workers that compute one expert with peers' libraries, each in its own environment."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from environments import python_of
from peers.rounds import Arm, Worker

GGML = (("Q2_K", "2 bits"), ("Q3_K", "3 bits"), ("Q4_K", "4 bits"))
PATHS = ("plain", "CPU_REPACK", "AMX")


@dataclass(frozen=True)
class Peer:
    """A worker that is ready."""

    name: str
    nbytes: int
    worker: Worker


@contextmanager
def expert_peers(
    hidden: int, inner: int, *, tokens: int, copies: int, threads: int
) -> Iterator[Sequence[Peer]]:
    """Start all peers that run here, print why others don't, and end them after the block.

    Parameters
    ----------
    hidden, inner
        The expert's sizes.
    tokens
        The number of tokens in one call.
    copies
        Experts that a worker computes one after the other, so that no cache keeps one.
    """
    with TemporaryDirectory() as scratch:
        sizes = {"hidden": hidden, "inner": inner, "tokens": tokens, "copies": copies}
        common = {**sizes, "threads": threads, "scratch": scratch}
        ready: list[Peer] = []
        try:
            for arm in _arms(common):
                if not arm.python.exists():
                    print(f"{arm.name}: no environment; benchmarks/environments.py makes it")
                    continue
                worker = Worker(arm, threads, alone=True)
                try:
                    ready.append(Peer(arm.name, int(worker.line()["nbytes"]), worker))
                except ChildProcessError as error:
                    worker.close()
                    print(f"{arm.name}: {error}", flush=True)
            yield ready
        finally:
            for peer in ready:
                peer.worker.close()


def _arms(common: dict[str, object]) -> Iterator[Arm]:
    python: Path = python_of("bitsandbytes")
    for dtype in ("bfloat16", "float32"):
        settings = {**common, "dtype": dtype}
        yield Arm(f"4 bits, bitsandbytes NF4 {dtype}", python, "bitsandbytes_expert.py", settings)
    for kind, bits in GGML:
        for path in PATHS:
            settings = {**common, "kind": kind, "path": path}
            name = f"{bits}, ggml {kind} {path}"
            yield Arm(name, python_of("llama"), "ggml_expert.py", settings)
