"""What must hold in a cache between two calls and whenever a demand has yielded an expert."""

from mixoff.cache.cache import ExpertCache
from mixoff.tiers.buffers import Buffer
from mixoff.tiers.cpu import CpuMover
from mixoff.tiers.gpu import GpuMover


def check_invariants(cache: ExpertCache) -> None:
    """Check the invariants 1 to 3 of `CacheState`: residents, slots and buffers."""
    state, active = cache._state, cache._state.active
    for layer, slots in enumerate(state.slots):
        assert len(slots) <= cache.slots_per_layer
        if active is None or active.layer != layer:
            assert state.residency[layer].residents == slots.keys()
    assert sorted(map(id, _buffers(cache))) == sorted(map(id, state.pool._made))
    assert len(state.pool._made) <= state.pool.limit or not state.pool._free


def check_loans(cache: ExpertCache, *, computing: bool) -> None:
    """Check invariant 4 where an expert may be computed in host memory now; fetches borrow, too."""
    active, mover = cache._state.active, cache._mover
    assert isinstance(mover, GpuMover)
    borrowed = len(active.borrowed) if active is not None else 0
    assert sum(mover.host._lent.values()) >= borrowed + computing


def _buffers(cache: ExpertCache) -> list[Buffer]:
    """Return the device's buffers, each as often as some place has it."""
    state = cache._state
    buffers = [buffer for slots in state.slots for buffer in slots.values()]
    if state.active is not None:
        buffers += [in_flight.fetch.buffer for in_flight in state.active.in_flight.values()]
    buffers += [guess.fetch.buffer for guess in state.staging._guesses.values()]
    buffers += state.passing
    if isinstance(state.mover, CpuMover):
        buffers += state.mover._kept.values()
    buffers += state.pool._free
    return buffers + [buffer for _, buffer in state.pool._returning]
