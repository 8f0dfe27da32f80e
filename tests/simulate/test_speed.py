"""Predicted speeds follow from bytes and seconds, computed by hand and in general."""

import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixoff import Trace, replay
from mixoff.errors import ConfigError, TraceError
from mixoff.simulate import LinkModel, Machine, PrefetchAccuracy, predict_speed, recorded_speed
from mixoff.simulate.link_queue import LinkQueue
from mixoff.simulate.machine import link_of
from mixoff.units import CHUNK
from support.recordings import MS, HandPlayed
from support.tiers import examples

ROUND = Machine(layer_s=0.010, expert_s=0.001, token_s=0.100, link=LinkModel(0.002, 1e6))
NBYTES = 3000  # 5 ms over that link


def recorded(demands: list[list[list[int]]], *, experts: int = 4, nbytes: int = NBYTES) -> Trace:
    """Return a recording of a cache with a slot for every expert: ``demands[token][layer]``."""
    layers = len(demands[0])
    played = HandPlayed(layers=layers, experts=experts, slots=experts).record()
    for token in demands:
        for layer, needed in enumerate(token):
            played.demand(layer, needed)
    return played.trace(record_nbytes=[nbytes] * layers)


def routed(seed: int = 1, layers: int = 3, nbytes: int = NBYTES) -> Trace:
    return Trace.synthetic(
        "zipf", tokens=40, layers=layers, experts=8, top_k=2, seed=seed, record_nbytes=nbytes
    )


def only(table: pd.DataFrame, column: str) -> float:
    (value,) = table[column]
    return value


def test_without_misses_a_token_takes_what_computing_it_does():
    speed = predict_speed(recorded([[[0, 1], [2, 3]]] * 3), ROUND)
    assert only(speed, "compute_ms") == pytest.approx(100 + 2 * 10 + 4 * 1)
    assert only(speed, "wait_ms") == 0
    assert only(speed, "tokens_per_s") == pytest.approx(1000 / 124)


def test_hits_are_computed_while_a_miss_comes():
    tokens = [[[3, expert]] for expert in (0, 1, 0, 1)]  # a cache begins with the highest experts
    speed = predict_speed(recorded(tokens), ROUND, policies="lru", slots=2)
    assert only(speed, "hit_rate") == pytest.approx(0.5)
    assert only(speed, "wait_ms") == pytest.approx(5 - 1)  # but for the hit that is computed


def test_misses_of_a_layer_come_one_after_the_other():
    tokens = [[[0, 1]], [[2, 3]], [[0, 1]], [[2, 3]], [[0, 1]]]
    speed = predict_speed(recorded(tokens), ROUND, policies="lru", slots=2)
    assert only(speed, "hit_rate") == 0
    assert only(speed, "wait_ms") == pytest.approx(5 + 4)  # the second while the first is computed


def test_a_right_guess_comes_while_the_layer_before_is_computed():
    tokens = [[[0], [0]], [[1], [1]], [[0], [0]], [[1], [1]], [[0], [0]]]
    trace = recorded(tokens)
    without = predict_speed(trace, ROUND, policies="lru", slots=1)
    assert only(without, "wait_ms") == pytest.approx(5 + 5)
    guessed = predict_speed(
        trace, ROUND, policies="lru", slots=1, guessing=PrefetchAccuracy(1, (1.0,))
    )
    # Layer 0 waits 5 ms, then computes 1 + 10 ms, in which layer 1's guess comes.
    assert only(guessed, "wait_ms") == pytest.approx(5)


def test_a_late_guess_is_waited_for_as_long_as_it_has_still_to_come():
    tokens = [[[0], [0]], [[1], [1]], [[0], [0]], [[1], [1]]]
    quick = Machine(layer_s=0.001, expert_s=0.001, token_s=0.1, link=LinkModel(0.002, 1e6))
    speed = predict_speed(
        recorded(tokens), quick, policies="lru", slots=1, guessing=PrefetchAccuracy(1, (1,))
    )
    assert only(speed, "wait_ms") == pytest.approx(5 + (5 - 2))


def test_wrong_guesses_cost_no_waiting_once_their_layer_is_over():
    tokens = [[[0], [0], [0]], [[1], [1], [1]]] * 3
    quick = Machine(layer_s=0.010, expert_s=0.001, token_s=0.1, link=LinkModel(0.002, 1e6))
    speed = predict_speed(
        recorded(tokens), quick, policies="lru", slots=1, guessing=PrefetchAccuracy(1, (0,))
    )
    plain = predict_speed(recorded(tokens), quick, policies="lru", slots=1)
    assert only(speed, "wait_ms") == pytest.approx(only(plain, "wait_ms"))


def test_hits_are_those_of_a_replay():
    trace = routed()
    table = predict_speed(trace, ROUND, policies=["lru", "lfu"], slots=[2, 3])
    assert table[["policy", "slots"]].values.tolist() == [
        ["lru", 2], ["lru", 3], ["lfu", 2], ["lfu", 3],
    ]  # fmt: skip
    own = trace.demands()
    counted = np.repeat(own.step < own.step[-1], np.diff(own.first))  # the last is no whole token
    for row in table.itertuples():
        hit = replay(trace, row.policy, row.slots).hit
        assert row.hit_rate == pytest.approx(hit[counted].mean())


def test_a_slowdown_lengthens_copies_and_nothing_else():
    tokens = [[[0]], [[1]], [[0]], [[1]]]
    slow = Machine(0.010, 0.001, 0.100, LinkModel(0.002, 1e6), copy_s=0.0005, slowdown=2.0)
    speed = predict_speed(recorded(tokens), slow, policies="lru", slots=1)
    assert only(speed, "wait_ms") == pytest.approx(10)
    assert only(speed, "compute_ms") == pytest.approx(111.5)


def test_wrong_guesses_take_from_compute_what_a_copy_takes():
    tokens = [[[0], [0]], [[0], [0]], [[0], [0]], [[0], [0]]]
    costly = Machine(0.010, 0.001, 0.100, LinkModel(0.002, 1e6), copy_s=0.0005)
    trace = recorded(tokens, experts=64)  # of which a wrong guess is hardly ever resident
    plain = predict_speed(trace, costly, policies="lru", slots=1)
    guessed = predict_speed(
        trace, costly, policies="lru", slots=1, guessing=PrefetchAccuracy(4, (0.0,))
    )
    assert only(guessed, "compute_ms") == pytest.approx(only(plain, "compute_ms") + 4 * 0.5)


numbers = st.floats(0.0, 0.05)


@settings(max_examples=examples(30), deadline=None)
@given(seed=st.integers(0, 5), bandwidth=st.floats(1e4, 1e8), more=st.floats(1.0, 10.0))
def test_a_faster_link_never_makes_tokens_slower(seed, bandwidth, more):
    trace = routed(seed)
    times = []
    for rate in (bandwidth, bandwidth * more):
        machine = Machine(0.001, 0.001, 0.002, LinkModel(0.0, rate))
        speed = predict_speed(trace, machine, policies="lru", slots=2)
        times.append(only(speed, "token_ms"))
    assert times[1] <= times[0] * (1 + 1e-9)


@settings(max_examples=examples(20), deadline=None)
@given(seed=st.integers(0, 5), layer_s=numbers, expert_s=numbers)
def test_more_slots_never_add_waiting_with_lru(seed, layer_s, expert_s):
    machine = Machine(layer_s, expert_s, 0.0, LinkModel(0.001, 1e6))
    waits = predict_speed(routed(seed), machine, policies="lru", slots=range(2, 9))["wait_ms"]
    assert (np.diff(waits) <= 1e-9).all()


@settings(max_examples=examples(20), deadline=None)
@given(seed=st.integers(0, 5), layer_s=numbers, expert_s=numbers)
def test_knowing_what_comes_never_adds_waiting(seed, layer_s, expert_s):
    machine = Machine(layer_s, expert_s, 0.0, LinkModel(0.001, 1e6))
    waits = []
    for guessing in (None, PrefetchAccuracy(2, (1.0,))):
        speed = predict_speed(routed(seed), machine, policies="lru", slots=2, guessing=guessing)
        waits.append(only(speed, "wait_ms"))
    assert waits[1] <= waits[0] + 1e-9


def test_the_same_seed_makes_the_same_guesses():
    guessing = PrefetchAccuracy(2, (0.6, 0.4))
    tables = [
        predict_speed(routed(), ROUND, policies="lru", slots=3, guessing=guessing, seed=seed)
        for seed in (7, 7)
    ]
    pd.testing.assert_frame_equal(*tables)


def decoded(*, tokens: int = 4, seed: int = 1) -> Trace:
    """Return a recording of known times: 3 ms without experts, 2 ms an expert, 7 ms besides."""
    played = HandPlayed(layers=3, experts=8, slots=4).record()
    chance = random.Random(seed)
    for _ in range(tokens):
        for layer in range(3):
            played.demand(layer, chance.sample(range(8), 2), wait_ns=5 * MS, compute_ns=2 * MS)
            played.now += 3 * MS
        played.now += 7 * MS
    return played.trace(io="direct", device="cpu")


def test_a_machine_is_fitted_to_the_times_of_a_recording():
    link = LinkModel(latency_s=0.001, bytes_per_s=1e6)  # 2 ms and a little for what took 5
    machine = Machine.fit(decoded(), link)
    assert machine.layer_s == pytest.approx(0.003)
    assert machine.expert_s == pytest.approx(0.002)
    assert machine.token_s == pytest.approx(0.007)
    assert machine.copy_s == pytest.approx(0.0, abs=1e-12)
    assert machine.slowdown == pytest.approx(0.005 / link.seconds(1001), rel=1e-3)
    assert machine.link == link


def test_the_fitted_machine_predicts_the_recording_it_was_fitted_to():
    trace = decoded(tokens=12)
    machine = Machine.fit(trace, LinkModel(latency_s=0.005, bytes_per_s=1e15))
    predicted, measured = predict_speed(trace, machine), recorded_speed(trace)
    assert only(predicted, "compute_ms") == pytest.approx(only(measured, "compute_ms"))
    assert only(predicted, "hit_rate") == pytest.approx(only(measured, "hit_rate"))
    # Played by hand, each miss was waited for in full; a cache fetches it beside the hit.
    assert only(predicted, "wait_ms") <= only(measured, "wait_ms")


@settings(max_examples=examples(50), deadline=None)
@given(latency=st.floats(1e-6, 1e-2), rate=st.floats(1e6, 1e11))
def test_a_link_is_recovered_from_times_without_noise(latency, rate):
    sizes = [4096 * 4**n for n in range(8)]
    link = LinkModel.fit(sizes, [latency + n / rate for n in sizes])
    for nbytes in sizes:
        assert link.seconds(nbytes) == pytest.approx(latency + nbytes / rate, rel=1e-6)


@pytest.mark.parametrize(
    ("sizes", "seconds"), [([4096], [1.0]), ([4096, 4096], [1.0, 2.0]), ([10, 1000], [1.0, 1e-9])]
)
def test_a_link_needs_sizes_that_take_longer(sizes, seconds):
    with pytest.raises(ConfigError):
        LinkModel.fit(sizes, seconds)


def test_pieces_of_a_copy_take_as_long_as_the_copy():
    link = LinkModel(0.1, 1e7)
    for nbytes in (1, CHUNK, CHUNK + 1, 3 * CHUNK - 5):
        assert sum(link.pieces(nbytes)) == pytest.approx(link.seconds(nbytes))


def transfers(**columns: object) -> pd.DataFrame:
    sizes = [4096, 1 << 20]
    path = {"source": "disk", "method": "direct", "page_cache": "past it", "in_flight": 1}
    ms = [1 + nbytes / 1e6 for nbytes in sizes]
    return pd.DataFrame({**path, "nbytes": sizes, "ms": ms, **columns})


def test_the_link_is_that_of_the_recordings_path():
    buffered = transfers(method="buffered", page_cache="in it", ms=[5.0, 6.0])
    more = transfers(in_flight=4, ms=[7.0, 9.0])
    link = link_of(decoded(), pd.concat([buffered, more, transfers()]))
    assert link.latency_s == pytest.approx(1e-3)
    assert link.bytes_per_s == pytest.approx(1e9)


def test_a_path_that_was_not_measured_is_named():
    with pytest.raises(ConfigError, match="disk, direct"):
        link_of(decoded(), transfers(method="buffered"))


def test_a_recording_without_two_tokens_in_a_row_is_refused():
    with pytest.raises(TraceError, match="two decoded tokens"):
        predict_speed(recorded([[[0, 1]]]), ROUND)


@pytest.mark.parametrize("wrong", [{"experts": 0, "recall": (1,)}, {"experts": 1, "recall": (2,)}])
def test_guesses_that_can_not_be_are_refused(wrong):
    with pytest.raises(ConfigError):
        PrefetchAccuracy(**wrong)


PUBLISHED = pd.read_csv(Path(__file__).parents[2] / "data" / "published_table2.csv", comment="#")
NO_CACHE, NO_GUESSES = "without LRU cache and pre-loading", "without speculative pre-loading"


CARDS = PUBLISHED[["experts_nbits", "gpu"]].drop_duplicates().values.tolist()


@pytest.mark.parametrize(("bits", "gpu"), CARDS)
def test_from_one_published_row_the_gain_of_a_cache_follows_within_a_fifth(bits, gpu):
    rows = PUBLISHED[(PUBLISHED["experts_nbits"] == bits) & (PUBLISHED["gpu"] == gpu)]
    speeds = rows.set_index("algorithm")["tokens_per_s"]
    nbytes = {2: 66_400_000, 3: 76_100_000}[bits]  # of an expert in the released files
    link = LinkModel(0.0, 24e9 if gpu.startswith(("A100", "RTX 3080")) else 12e9)  # PCIe 4 and 3
    trace = Trace.synthetic(
        "uniform", tokens=60, layers=32, experts=8, top_k=2, seed=1, record_nbytes=nbytes
    )
    compute_s = 1 / speeds[NO_CACHE] - 64 * link.seconds(nbytes)
    machine = Machine(compute_s / 32, 0.0, 0.0, link)
    slots = 2 if gpu == "RTX 3060" else 4
    plain = predict_speed(trace, machine, policies="lru", slots=slots)
    assert only(plain, "tokens_per_s") == pytest.approx(speeds[NO_GUESSES], rel=0.2)
    guessed = predict_speed(
        trace, machine, policies="lru", slots=slots, guessing=PrefetchAccuracy(2, (0.7,))
    )
    assert only(guessed, "tokens_per_s") > only(plain, "tokens_per_s")


def test_what_is_demanded_overtakes_what_is_guessed_between_two_pieces():
    queue = LinkQueue()
    guess = queue.request(0.0, [1.0, 1.0, 1.0], guess=True)
    demand = queue.request(1.5, [1.0])
    assert queue.finish(demand) == 3.0  # after the guess's second piece, which had begun
    assert queue.finish(guess) == 4.0


def test_a_dropped_copy_ends_with_the_piece_that_has_begun():
    queue = LinkQueue()
    guess = queue.request(0.0, [1.0, 1.0, 1.0], guess=True)
    queue.advance(0.5)
    queue.drop(guess)
    assert queue.finish(queue.request(0.5, [1.0])) == 2.0


def test_an_idle_link_begins_with_the_request():
    queue = LinkQueue()
    queue.finish(queue.request(0.0, [1.0]))
    assert queue.finish(queue.request(10.0, [1.0])) == 11.0


def test_a_promoted_guess_keeps_its_place():
    queue = LinkQueue()
    queue.request(0.0, [5.0])
    guess = queue.request(0.1, [1.0], guess=True)
    queue.promote(guess)
    later = queue.request(0.2, [1.0])
    assert queue.finish(guess) == 6.0
    assert queue.finish(later) == 7.0
