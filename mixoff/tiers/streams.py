"""What transfers need of a device with memory of its own. Knows streams and events; no records.

All that needs a GPU is here: three streams that work in order, asynchronous copies, and events that
one stream records and another follows. `Cuda` is a GPU through torch; tests use a device whose
streams run when the test decides.
"""

from time import perf_counter_ns
from typing import Protocol

import torch
from torch import Tensor


class Event(Protocol):
    """A mark in a stream."""

    def wait(self) -> None:
        """Block the host until all work before the mark is done."""

    def nanoseconds(self) -> int:
        """Return when a passed mark was passed, on the clock of `time.perf_counter_ns`."""


class Stream(Protocol):
    """Work that a device does in order."""

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Submit a copy of bytes; it runs later."""

    def record(self) -> Event:
        """Return a mark behind all work submitted to the stream so far."""

    def follow(self, event: Event | None) -> None:
        """Make work submitted to the stream from now on begin after an event, if not None."""


class Device(Protocol):
    """A device's streams, and its memory."""

    @property
    def compute(self) -> Stream:
        """The stream on which the caller computes now."""

    @property
    def inward(self) -> Stream:
        """The stream of copies into the device."""

    @property
    def outward(self) -> Stream:
        """The stream of copies out of it."""

    def allocate(self, nbytes: int) -> Tensor:
        """Return memory of the device [nbytes], uint8."""

    def allocate_pinned(self, nbytes: int) -> Tensor:
        """Return host memory [nbytes], uint8, that the device copies from and to directly.

        Raises
        ------
        RuntimeError
            If the system refuses.
        """


class CudaEvent:
    """A CUDA event, and an earlier one with a known time, from which its time is measured."""

    def __init__(self, event: torch.cuda.Event, origin: torch.cuda.Event, origin_ns: int) -> None:
        self.event = event
        self._origin = origin
        self._origin_ns = origin_ns

    def wait(self) -> None:
        """Block the host until all work before the event is done."""
        self.event.synchronize()

    def nanoseconds(self) -> int:
        """Return when the event was passed, on the host's clock, to a few microseconds."""
        return self._origin_ns + int(1e6 * self._origin.elapsed_time(self.event))


class CudaStream:
    """A CUDA stream."""

    def __init__(self, stream: torch.cuda.Stream, origin: torch.cuda.Event, origin_ns: int) -> None:
        self._stream = stream
        self._origin = origin, origin_ns

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Submit a copy of bytes to this stream."""
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)

    def record(self) -> CudaEvent:
        """Record an event on this stream."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return CudaEvent(event, *self._origin)

    def follow(self, event: Event | None) -> None:
        """Make this stream wait for an event; the host doesn't."""
        if event is not None:
            assert isinstance(event, CudaEvent)  # a GPU's streams record no others
            self._stream.wait_event(event.event)


class Cuda:
    """A GPU for CUDA, with a stream for each direction of copies beside that of compute."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._origin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._origin.record(torch.cuda.current_stream(device))
        self._origin.synchronize()  # only here, when the model is loaded: later times refer to it
        self._origin_ns = perf_counter_ns()
        self.inward = self._side_stream(priority=-1)
        self.outward = self._side_stream(priority=0)

    @property
    def compute(self) -> CudaStream:
        """The current stream of the calling thread."""
        return self._stream(torch.cuda.current_stream(self._device))

    def allocate(self, nbytes: int) -> Tensor:
        """Return memory of the GPU."""
        return torch.empty(nbytes, dtype=torch.uint8, device=self._device)

    def allocate_pinned(self, nbytes: int) -> Tensor:
        """Return pinned host memory."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def _side_stream(self, priority: int) -> CudaStream:
        side = torch.cuda.Stream(self._device, priority=priority)  # type: ignore[no-untyped-call]
        return self._stream(side)

    def _stream(self, stream: torch.cuda.Stream) -> CudaStream:
        return CudaStream(stream, self._origin, self._origin_ns)
