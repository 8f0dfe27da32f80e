"""Settings are checked when they are made, and sizes mean what a person wrote."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixoff.config import OffloadConfig
from mixoff.errors import ConfigError, MixoffError
from mixoff.policies.recency import LRU
from mixoff.units import format_nbytes, parse_nbytes


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        (0, 0),
        (4096, 4096),
        ("4096", 4096),
        ("7B", 7),
        ("10GiB", 10 * 1024**3),
        ("500 MB", 500_000_000),
        ("1.5KiB", 1536),
        (" 2tib ", 2 * 1024**4),
        ("9007199254740993", 9007199254740993),
        ("1" + "0" * 400, 10**400),
    ],
)
def test_a_size_is_parsed_to_bytes(text, nbytes):
    assert parse_nbytes(text) == nbytes


@given(st.integers(0, 2**70))
def test_a_whole_number_of_bytes_is_taken_exactly(nbytes):
    assert parse_nbytes(nbytes) == parse_nbytes(str(nbytes)) == nbytes


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1", -1, "1e3", "10 K", "10GiBs", "1,5GB", "1.GB", "nan", None, True]
)
def test_what_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match="is not a size: write bytes or a number and a unit, as"):
        parse_nbytes(text)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (66_060_288, "63.00 MiB")],
)
def test_bytes_are_shown_in_binary_units(nbytes, text):
    assert format_nbytes(nbytes) == text


@pytest.mark.parametrize("offload", [-1, 1.5, "4", True])
def test_an_offload_that_is_no_count_is_refused_with_the_value(offload):
    with pytest.raises(ConfigError, match=rf"offload_per_layer={offload!r}: give a whole number"):
        OffloadConfig(offload_per_layer=offload)


@pytest.mark.parametrize("policy", ["mru", "", "belady", None, LRU, ["lru"]])
def test_an_unknown_policy_is_refused_with_the_known_ones(policy):
    with pytest.raises(ConfigError, match="one of lru, lfu, fifo, random, static, or a Policy"):
        OffloadConfig(policy=policy)


def test_a_policy_of_ones_own_is_taken():
    assert isinstance(OffloadConfig(policy=LRU()).policy, LRU)


def test_a_host_memory_that_is_no_size_is_refused_when_the_settings_are_made():
    with pytest.raises(ConfigError, match="'lots' is not a size"):
        OffloadConfig(host_memory="lots")


@pytest.mark.parametrize("name", ["host_memory", "device_memory", "pinned_memory"])
@pytest.mark.parametrize("budget", [0, 4096, "10GiB", "auto"])
def test_a_budget_is_bytes_a_text_or_auto(name, budget):
    assert getattr(OffloadConfig(**{name: budget}), name) == budget


@pytest.mark.parametrize("name", ["host_memory", "device_memory", "pinned_memory"])
@pytest.mark.parametrize("budget", ["", "lots", -1, "AUTO"])
def test_any_other_budget_is_refused(name, budget):
    with pytest.raises(ConfigError, match=f"{budget!r} is not a size"):
        OffloadConfig(**{name: budget})


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("prefetch", -1, "give a whole number from 0"),
        ("prefetch", 1.0, "give a whole number from 0"),
        ("layers_ahead", 0, "give a whole number from 1"),
        ("staging", 1, "give a whole number from 2"),
        ("staging", True, "give a whole number from 2"),
        ("predictor", "", "give one of next-gate, previous-token, frequency, markov"),
        ("predictor", None, "give one of next-gate, previous-token, frequency, markov"),
        ("io", "mmap", "give one of auto, direct, buffered"),
        ("host_tier", "none", "give one of auto, inclusive, exclusive"),
        ("miss", "skip", "give one of fetch, compute, auto"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_with_name_value_and_rule(name, value, rule):
    with pytest.raises(ConfigError, match=f"{name}={value!r}: {rule}"):
        OffloadConfig(**{name: value})


def test_two_ways_to_say_how_many_slots_there_are_are_one_too_many():
    with pytest.raises(ConfigError, match=r"offload_per_layer=0 and device_memory='1GiB': .* one"):
        OffloadConfig(offload_per_layer=0, device_memory="1GiB")


def test_auto_takes_what_is_free_on_device_and_host():
    assert OffloadConfig.auto() == OffloadConfig(device_memory="auto", host_memory="auto")


@pytest.mark.parametrize(("experts", "slots"), [(8, 4), (5, 3), (1, 1)])
def test_half_of_the_experts_start_outside_unless_a_number_is_given(experts, slots):
    assert OffloadConfig().slots_per_layer(experts) == slots


def test_how_many_slots_a_budget_pays_for_is_not_said_without_a_model():
    with pytest.raises(ConfigError, match=r"device_memory='1GiB': .* call mixoff\.plan_memory"):
        OffloadConfig(device_memory="1GiB").slots_per_layer(8)


@pytest.mark.parametrize(("offload", "slots"), [(0, 8), (4, 4), (8, 0)])
def test_slots_are_the_experts_less_those_outside(offload, slots):
    assert OffloadConfig(offload_per_layer=offload).slots_per_layer(8) == slots


def test_more_experts_outside_than_there_are_is_refused_with_what_would_do():
    with pytest.raises(ConfigError, match=r"offload_per_layer=9: .* 8 experts: give 0 to 8"):
        OffloadConfig(offload_per_layer=9).slots_per_layer(8)


def test_a_setting_cannot_be_changed_afterwards():
    with pytest.raises(AttributeError):
        OffloadConfig().offload_per_layer = 3  # type: ignore[misc]


def test_an_unknown_setting_is_refused():
    with pytest.raises(TypeError, match="offload_per_layers"):
        OffloadConfig(offload_per_layers=3)  # type: ignore[call-arg]


def test_a_wrong_setting_is_a_value_error_and_one_of_mixoffs_own():
    assert issubclass(ConfigError, ValueError)
    assert issubclass(ConfigError, MixoffError)
