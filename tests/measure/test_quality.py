"""Schemes are compared by their bytes and their loss, and each is what its name says."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from mixoff.errors import ConfigError
from mixoff.measure import Reference, compute_reference, quality, schemes_of_bits
from mixoff.measure.quality import nominal_bits
from mixoff.quantization import HQQ, Scheme, Unquantized
from support.tiny import EXACT, MIXED, bytes_as_ids

TEXT = "What a scheme costs is told by a text. " * 4


@pytest.fixture(scope="module")
def reference(tiny_mixtral: Callable[..., Path]) -> Reference:
    return compute_reference(tiny_mixtral(), bytes_as_ids, TEXT)


@pytest.fixture(scope="module")
def measured(reference: Reference) -> pd.DataFrame:
    return quality(reference, {"exact": EXACT, "mixed": MIXED}).set_index("scheme")


def test_a_scheme_that_quantizes_nothing_costs_nothing(measured):
    exact = measured.loc["exact"]
    assert exact["kl"] == pytest.approx(0, abs=1e-9)
    assert exact["rise"] == pytest.approx(0, abs=1e-6)
    assert exact["top1_agreement"] == 1
    assert exact["bits_per_weight"] == 32


def test_fewer_bits_take_fewer_bytes_and_diverge_more(measured):
    assert measured.loc["mixed", "nbytes"] < measured.loc["exact", "nbytes"]
    assert measured.loc["mixed", "kl"] > 0.001


def test_bits_of_attention_and_experts_are_those_of_the_scheme(measured):
    assert measured[["attention", "experts"]].to_numpy().tolist() == [[32, 32], [4, 2]]


def test_no_file_is_left_in_the_given_folder(reference, tmp_path):
    quality(reference, {"mixed": MIXED}, folder=tmp_path)
    assert not [*tmp_path.iterdir()]


def test_schemes_of_bits_are_all_pairs_under_their_names():
    schemes = schemes_of_bits((4, 16), (2, 3))
    assert [*schemes] == ["4/2", "4/3", "16/2", "16/3"]
    assert schemes["4/2"] == Scheme()
    assert schemes["16/3"] == Scheme(Unquantized("float16"), HQQ(3, group_size=64))
    for name, scheme in schemes_of_bits().items():
        assert name == f"{nominal_bits(scheme.attention)}/{nominal_bits(scheme.experts)}"


def test_unknown_bits_are_refused():
    with pytest.raises(ConfigError, match=r"bits=5: give some of 16, 8, 4, 3, 2"):
        schemes_of_bits((4, 5))


def test_no_scheme_is_refused(reference):
    with pytest.raises(ConfigError, match="schemes is empty: give one or more"):
        quality(reference, {})
