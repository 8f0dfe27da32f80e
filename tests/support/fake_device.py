"""A device whose streams do their work at random times, for tests without a GPU."""

import random
from collections import deque
from collections.abc import Callable
from threading import RLock

import torch
from torch import Tensor


class FakeEvent:
    """A mark in a fake stream."""

    def __init__(self, device: "FakeDevice") -> None:
        self._device = device
        self.passed_at: int | None = None

    def wait(self) -> None:
        while self.passed_at is None:
            with self._device.lock:
                moved = self.passed_at is not None or self._device.run_one()
            assert moved, "the host waits for an event that is never passed"

    def nanoseconds(self) -> int:
        assert self.passed_at is not None
        return self.passed_at


class FakeStream:
    """Work in order, each piece done when the device runs it."""

    def __init__(self, device: "FakeDevice") -> None:
        self._device = device
        self.work: deque[Callable[[], bool]] = deque()  # each returns whether it could be done

    def enqueue(self, piece: Callable[[], object]) -> None:
        def done() -> bool:
            piece()
            return True

        self._add(done)

    def copy(self, source: Tensor, target: Tensor) -> None:
        self.enqueue(lambda: target.copy_(source))

    def record(self) -> FakeEvent:
        event = FakeEvent(self._device)
        self.enqueue(lambda: setattr(event, "passed_at", self._device.tick()))
        return event

    def follow(self, event: FakeEvent | None) -> None:
        if event is not None:
            self._add(lambda: event.passed_at is not None)

    def _add(self, piece: Callable[[], bool]) -> None:
        with self._device.lock:
            self.work.append(piece)
            self._device.run_some()


class FakeDevice:
    """Three streams over host memory; after each submission some work is done, at random."""

    def __init__(self, seed: int, *, pins: int | None = None) -> None:
        self.lock = RLock()
        self._chance = random.Random(seed)
        self._clock = 0
        self._pins_left = pins
        self.compute, self.inward, self.outward = (FakeStream(self) for _ in range(3))

    def allocate(self, nbytes: int) -> Tensor:
        return torch.full((nbytes,), 0xEE, dtype=torch.uint8)

    def allocate_pinned(self, nbytes: int) -> Tensor:
        if self._pins_left is not None:
            if self._pins_left == 0:
                raise RuntimeError("CUDA error: out of memory")
            self._pins_left -= 1
        return torch.full((nbytes,), 0xDD, dtype=torch.uint8)

    def tick(self) -> int:
        self._clock += 1
        return self._clock

    def run_some(self) -> None:
        for _ in range(
            self._chance.choice([0, 0, 0, 0, 0, 0, 9])
        ):  # in bursts, so that work is late
            self.run_one()

    def run_one(self) -> bool:
        """Do the next piece of any stream that can go on; False if none can."""
        with self.lock:
            streams = [self.compute, self.inward, self.outward]
            self._chance.shuffle(streams)
            return any(self._advance(stream) for stream in streams)

    def run_all(self) -> None:
        while self.run_one():
            pass

    def _advance(self, stream: FakeStream) -> bool:
        if stream.work and stream.work[0]():
            stream.work.popleft()
            return True
        return False


class HostStream(FakeStream):
    """The compute stream of a device that is the host: it waits where a GPU's stream would."""

    def record(self) -> FakeEvent:
        event = FakeEvent(self._device)
        event.passed_at = self._device.tick()
        return event

    def follow(self, event: FakeEvent | None) -> None:
        if event is not None:
            event.wait()


class ComputingDevice(FakeDevice):
    """A fake device in whose memory plain torch computes, so that a model runs on it."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.compute = HostStream(self)
