"""How much waiting for experts the cache hides behind compute, beside a cache that blocks.

Run it from the root of a clone: ``.venv/bin/python benchmarks/transfers.py``. It writes 2.1 GB of
random records into ``--folder`` and deletes them at the end; ``--part demo`` needs no disk.

The first part reads records of Mixtral's size (66.4 MB) from disk with direct I/O, for 4 layers of
8 experts and 4 slots, and the demands of layers 4 to 7 of a reply of the demo model. Every round
runs all arms with the same demands from the same initial residents. A layer has the steps of a
model's: attention, router, `acquire` of this layer and `prefetch` of the next one, then the experts
as they become ready. Attention is half of a layer's compute, each of its two experts a quarter.
Compute is simulated by matrix products in one torch thread, repeated until a given time is over.
They release the interpreter's lock as a model's products do, and leave the second core free. The
time is 0.5, 1 or 2 times that of reading a layer's misses on average, measured again in each round.
*Speed* is the number of products beside an arm's transfers over the number without transfers: what
transfers take from compute. The last of the four layers guesses for the first layer and the next
token what the model's layer 3 guessed for layer 4, so that the four are a part of a longer model.

Arms: *blocking* reads misses when compute needs them, and nothing beside compute. *no prefetch*
reads them beside the compute of the layer's hits. The others fetch guesses for the next layer:
*next-gate* those of the demo model's next gate, top 2; *80 % right* each needed expert with a
probability of 0.8, else a wrong one; *perfect* all needed experts; *perfect, 2 ahead* those of the
two next layers. Stall is `CacheStats.wait_ns`. The bound is the larger of compute and transfer: the
time for which the blocking arm read in the same round.

The second part is a reply of the demo model as it is, computed by one thread, so that the second
core is free for transfers.
"""

import argparse
import gc
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer

from mixoff import Chat, ExpertCache, OffloadConfig, build_model, demo_path
from mixoff.measure.recall import watch_routers
from mixoff.predictors.next_gate import NextGate
from mixoff.quantization import Unquantized
from mixoff.tiers.cpu import CpuMover
from mixoff.tiers.disk import DiskReader
from mixoff.tiers.queue import Transfers
from mixoff.tiers.record import RecordLayout, RecordLocation
from mixoff.tiers.store import RecordStore
from mixoff.units import format_nbytes

LAYERS, EXPERTS, SLOTS, STAGING = 4, 8, 4, 4
FIRST_LAYER = 4  # of the demo model
LAYOUT = RecordLayout(Unquantized("float16"), (("weight", (4096, 8106)),))  # 66.4 MB
PROMPT = "Tell me a story about a fox."
NS_PER_MS = 1e6

Experts = tuple[int, ...]
Token = tuple[Experts, ...]  # of each layer


@dataclass(frozen=True)
class Routing:
    """The experts that layers needed, token by token, and the previous layer's guesses of them."""

    needed: list[Token]
    guessed: list[Token]


@dataclass(frozen=True)
class Arm:
    """Settings of a cache: its transfer threads, and guesses for a number of layers ahead."""

    name: str
    threads: int
    guesses: list[Token] | None
    layers_ahead: int = 1


@dataclass(frozen=True)
class Run:
    """The measurements of one arm, per token."""

    total_ms: float
    stall_ms: float
    speed: float  # of the stand-in, in products a millisecond
    megabytes: float
    used: int
    late: int
    wasted: int


def demo_chat(tokens: int, **offload: object) -> tuple[torch.nn.Module, ExpertCache, Chat]:
    """Return the demo model, its cache, and a chat that decodes greedily."""
    torch.set_num_threads(1)
    model, cache = build_model(demo_path(), OffloadConfig(**offload))
    tokenizer = AutoTokenizer.from_pretrained(demo_path())
    return model, cache, Chat(model, tokenizer, temperature=0, max_new_tokens=tokens)


def demo_routing(tokens: int) -> Routing:
    """Return the routing of a reply's decoded tokens in the demo model's last four layers."""
    model, _, chat = demo_chat(tokens + 1)
    with watch_routers(model) as watched:
        for _ in chat.send(PROMPT):
            pass
    gate = NextGate(watched.gates)
    depth = len(watched.gates)
    needed, guessed = [], []
    for start in range(0, len(watched.layers), depth):
        step = watched.layers[start : start + depth]
        if len(step[0][1]) > 1:  # the prompt
            continue
        needed.append(tuple(tuple(step[FIRST_LAYER + at][1][0]) for at in range(LAYERS)))
        row = []
        for target in range(FIRST_LAYER, FIRST_LAYER + LAYERS):
            scores = gate.scores(target - 1, target, step[target - 1][0])  # [1, E]
            row.append(tuple(scores[0].topk(2).indices.tolist()))
        guessed.append(tuple(row))
    return Routing(needed, guessed)


def partly_right(needed: list[Token], share: float, seed: int = 0) -> list[Token]:
    """Return guesses of which each is right with a probability."""
    rng = random.Random(seed)

    def guess(experts: Experts) -> Experts:
        wrong = [expert for expert in range(EXPERTS) if expert not in experts]
        rng.shuffle(wrong)
        return tuple(e if rng.random() < share else wrong.pop() for e in experts)

    return [tuple(guess(experts) for experts in token) for token in needed]


def arms(routing: Routing) -> list[Arm]:
    """Return all arms, the blocking one first."""
    needed = routing.needed
    return [
        Arm("blocking", 0, None),
        Arm("no prefetch", 1, None),
        Arm("next-gate", 1, routing.guessed),
        Arm("80 % right", 1, partly_right(needed, 0.8)),
        Arm("perfect", 1, needed),
        Arm("perfect, 2 ahead", 1, needed, layers_ahead=2),
    ]


def write_records(folder: Path) -> list[list[RecordLocation]]:
    """Write a file of random bytes for each layer, and drop it from the page cache."""
    generator = torch.Generator().manual_seed(0)
    for layer in range(LAYERS):
        with (folder / f"layer-{layer}").open("wb") as file:
            for _ in range(EXPERTS):
                words = torch.randint(2**62, (LAYOUT.stride // 8,), generator=generator)
                file.write(words.numpy().data)
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return [
        [
            RecordLocation(folder / f"layer-{layer}", e * LAYOUT.stride, LAYOUT.nbytes, None)
            for e in range(EXPERTS)
        ]
        for layer in range(LAYERS)
    ]


@contextmanager
def capped(nbytes: int) -> Iterator[Callable[[], str]]:
    """Cap this process's memory, page cache included, with a control group of version 1.

    It yields a function that returns a sentence: whether the cap is in force, and the peak memory.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = next(line.split(":", 2)[2] for line in lines if line.split(":")[1] == "memory")
        parent = Path("/sys/fs/cgroup/memory", own.lstrip("/"))
        group = parent / f"benchmark.{os.getpid()}"
        group.mkdir()
    except (OSError, StopIteration):
        yield lambda: "memory isn't capped: no cgroup of version 1 that may be written"
        return
    try:
        (group / "memory.limit_in_bytes").write_text(str(nbytes))
        (group / "cgroup.procs").write_text(str(os.getpid()))
        peak = group / "memory.max_usage_in_bytes"
        yield (
            lambda: (
                f"memory is capped at {format_nbytes(nbytes)}, the page cache included; "
                f"{format_nbytes(int(peak.read_text()))} were in use at most"
            )
        )
    finally:
        with suppress(OSError):
            (parent / "cgroup.procs").write_text(str(os.getpid()))
            (group / "memory.force_empty").write_text("0")
        with suppress(OSError):
            group.rmdir()


class Compute:
    """Simulated compute: matrix products, one after the other, for a given time."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._left = torch.randn(192, 192)
        self._out = torch.empty(192, 192)
        self.products = self.spent_ns = 0

    def __call__(self, ms: float) -> None:
        """Compute for this many milliseconds."""
        began = time.perf_counter_ns()
        while time.perf_counter_ns() - began < ms * NS_PER_MS:
            torch.mm(self._left, self._left, out=self._out)
            self.products += 1
        self.spent_ns += time.perf_counter_ns() - began

    def restart(self) -> None:
        """Reset the counters."""
        self.products = self.spent_ns = 0

    @property
    def speed(self) -> float:
        """Products a millisecond since the restart."""
        return self.products / max(1, self.spent_ns) * NS_PER_MS


def open_cache(locations: list[list[RecordLocation]], threads: int) -> ExpertCache:
    """Return a cache over the records, with Mixtral's share of slots."""
    store = RecordStore(locations, DiskReader("direct"))
    mover = CpuMover(store, Transfers(threads), nbytes=LAYOUT.nbytes)
    layouts = [[LAYOUT] * EXPERTS] * LAYERS
    return ExpertCache(mover, layouts, slots_per_layer=SLOTS, staging=STAGING)


def run_arm(
    locations: list[list[RecordLocation]],
    arm: Arm,
    needed: list[Token],
    compute: Compute,
    layer_ms: float,
) -> Run:
    """Serve all demands once, with `layer_ms` of compute in each layer."""
    cache = open_cache(locations, arm.threads)
    before = cache.stats()
    compute.restart()
    began = time.perf_counter_ns()
    for position in range(len(needed) * LAYERS):
        token, layer = divmod(position, LAYERS)
        compute(layer_ms / 2)
        arriving = cache.acquire(layer, needed[token][layer])
        for ahead in range(1, arm.layers_ahead + 1):
            later, target = divmod(position + ahead, LAYERS)
            if arm.guesses is not None and later < len(needed):
                cache.prefetch(target, arm.guesses[later][target], layers_ahead=ahead)
        for _ in arriving:
            compute(layer_ms / 4)
    elapsed_ns = time.perf_counter_ns() - began
    stats = cache.stats() - before
    cache.close()
    del cache, arriving
    gc.collect()
    tokens = len(needed)
    return Run(
        total_ms=elapsed_ns / tokens / NS_PER_MS,
        stall_ms=stats.wait_ns / tokens / NS_PER_MS,
        speed=compute.speed,
        megabytes=(stats.bytes_moved + stats.bytes_wasted) / tokens / 1e6,
        used=stats.prefetch_used,
        late=stats.prefetch_late,
        wasted=stats.prefetch_wasted,
    )


def spread(values: Sequence[float]) -> str:
    """Return the median of some values, and their range."""
    return f"{statistics.median(values):.1f} [{min(values):.1f}-{max(values):.1f}]"


def compare(
    locations: list[list[RecordLocation]], routing: Routing, *, ratio: float, rounds: int
) -> dict[str, list[Run]]:
    """Print a table of all arms, with compute that takes `ratio` times the transfers."""
    compute = Compute()
    compared = arms(routing)
    tokens = len(routing.needed)
    runs: dict[str, list[Run]] = {arm.name: [] for arm in compared}
    speeds, computed = [], []
    for number in range(rounds):
        layer_ms = 0.0
        for _ in range(2):  # reads beside compute take longer than reads one after the other
            blocked = run_arm(locations, compared[0], routing.needed, compute, layer_ms)
            layer_ms = ratio * blocked.stall_ms / LAYERS
        compute.restart()
        compute(500)
        speeds.append(compute.speed)
        computed.append(layer_ms * LAYERS)
        for arm in compared if number % 2 == 0 else compared[::-1]:
            runs[arm.name].append(run_arm(locations, arm, routing.needed, compute, layer_ms))
    read_ms = [run.stall_ms for run in runs["blocking"]]
    bounds = [max(pair) for pair in zip(computed, read_ms, strict=True)]
    print(
        f"\nCompute {ratio:g} x transfer, {tokens} tokens, medians [min-max] of {rounds} rounds. A "
        f"token: compute {spread(computed)} ms, transfer {spread(read_ms)} ms, "
        f"bound {spread(bounds)} ms."
    )
    print_arms(runs, bounds, speeds)
    return runs


def print_arms(runs: dict[str, list[Run]], bounds: list[float], speeds: list[float]) -> None:
    """Print a row for each arm; bounds and speeds without transfers are those of each round."""
    print(
        f"{'':<17}{'stall ms':>22}{'total ms':>25}{'total / bound':>19}"
        f"{'speed':>7}{'MB/token':>10}{'used/late/wasted':>18}{'stall saved':>20}"
    )
    for name, own in runs.items():
        over = [run.total_ms / bound for run, bound in zip(own, bounds, strict=True)]
        saved = [
            100 * (1 - run.stall_ms / blocked.stall_ms)
            for run, blocked in zip(own, runs["blocking"], strict=True)
        ]
        speed = [run.speed / alone for run, alone in zip(own, speeds, strict=True)]
        last = own[-1]
        print(
            f"{name:<17}{spread([r.stall_ms for r in own]):>22}"
            f"{spread([r.total_ms for r in own]):>25}"
            f"{f'{statistics.median(over):.2f} [{min(over):.2f}-{max(over):.2f}]':>19}"
            f"{statistics.median(speed):>7.2f}{last.megabytes:>10.1f}"
            f"{f'{last.used}/{last.late}/{last.wasted}':>18}"
            f"{f'{statistics.median(saved):.0f} [{min(saved):.0f}-{max(saved):.0f}] %':>20}",
            flush=True,
        )


def from_disk(folder: Path | None, *, tokens: int, rounds: int, ratios: Sequence[float]) -> None:
    """Print the tables of records of Mixtral's size."""
    routing = demo_routing(tokens)
    pairs = list(zip(routing.needed, routing.guessed, strict=True))
    right = sum(len({*a} & {*b}) for n, g in pairs for a, b in zip(n, g, strict=True))
    size = LAYERS * EXPERTS * LAYOUT.stride
    print(
        f"{LAYERS} layers of {EXPERTS} records of {LAYOUT.nbytes / 1e6:.1f} MB "
        f"({size / 1e9:.1f} GB), {SLOTS} slots, {STAGING} staging buffers, {len(pairs)} tokens; "
        f"next-gate guessed {right / len(pairs) / LAYERS / 2:.0%} of what was needed; "
        f"load average {os.getloadavg()[0]:.2f}"
    )
    held = (LAYERS * SLOTS + STAGING) * (LAYOUT.stride + 8192)
    target = Path(tempfile.mkdtemp(prefix="transfers-", dir=folder))
    try:
        locations = write_records(target)
        with capped(held + (256 << 20)) as describe_cap:
            for ratio in ratios:
                compare(locations, routing, ratio=ratio, rounds=rounds)
            print(f"\n{describe_cap()}; load average {os.getloadavg()[0]:.2f}")
    finally:
        shutil.rmtree(target)


def demo_as_it_is(*, tokens: int, rounds: int) -> None:
    """Print the table of a reply of the demo model."""
    made = {}
    for io in ("buffered", "direct"):
        for name, threads, prefetch in (
            ("blocking", 0, 0),
            ("no prefetch", 1, 0),
            ("next-gate, 2", 1, 2),
        ):
            model, cache, chat = demo_chat(tokens, prefetch=prefetch, io=io)
            if not threads:  # the library has no such option, since it is slower
                cache._mover.transfers.close()
                cache._mover.transfers = Transfers(0)
            made[f"{name}, {io}"] = (model, cache, chat, [])
    for number in range(rounds + 1):
        for _, _, chat, replies in made.values():
            chat.reset()
            for _ in chat.send(PROMPT):
                pass
            if number:  # the first round warms up
                replies.append(chat.last)
    drawn = sorted({own[3][0].new_tokens for own in made.values()})  # one number, or a bug
    print(
        f"\nThe demo model as it is: {drawn} tokens drawn, 4 of 8 slots, "
        f"load average {os.getloadavg()[0]:.2f}. Medians [min-max] of {rounds}, prompt included."
    )
    print(f"{'':<24}{'tokens/s':>22}{'wait ms/token':>20}{'kB/token':>10}{'used/late/wasted':>20}")
    for name, (_, _, _, replies) in made.items():
        speed = [reply.tokens_per_second for reply in replies]
        waits = [reply.cache.wait_ns / NS_PER_MS / reply.new_tokens for reply in replies]
        last = replies[-1].cache
        moved = (last.bytes_moved + last.bytes_wasted) / replies[-1].new_tokens / 1e3
        fates = f"{last.prefetch_used}/{last.prefetch_late}/{last.prefetch_wasted}"
        wait = f"{statistics.median(waits):.2f} [{min(waits):.2f}-{max(waits):.2f}]"
        print(f"{name:<24}{spread(speed):>22}{wait:>20}{moved:>10.0f}{fates:>20}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("disk", "demo", "both"), default="both")
    parser.add_argument("--folder", type=Path, help="where 2.1 GB may be written")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ratios", type=float, nargs="+", default=(0.5, 1.0, 2.0))
    options = parser.parse_args()
    if options.part != "demo":
        from_disk(
            options.folder, tokens=options.tokens, rounds=options.rounds, ratios=options.ratios
        )
    if options.part != "disk":
        demo_as_it_is(tokens=60, rounds=options.rounds)


if __name__ == "__main__":
    main()
