"""Settings of a quantization are restored from JSON, and unknown ones are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixoff.errors import ConfigError
from mixoff.quantization import HQQ, Unquantized, quantization_from_dict
from mixoff.quantization.packing import BITS


@given(
    scheme=st.one_of(
        st.builds(
            HQQ,
            nbits=st.sampled_from(BITS),
            group_size=st.integers(1, 4096),
            scale_nbits=st.sampled_from([16, 8]),
        ),
        st.builds(Unquantized, dtype=st.sampled_from(["float32", "float16", "bfloat16"])),
    )
)
def test_a_quantization_is_restored_from_its_settings(scheme):
    assert quantization_from_dict(scheme.to_dict()) == scheme


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"method": "gptq"},
        {"method": ["hqq"]},
        {"method": "hqq", "nbits": 4, "axis": 0},
        {"method": "hqq", "nbits": "four"},
        {"method": "none", "dtype": ["float16"]},
        [],
        None,
        "hqq",
    ],
    ids=str,
)
def test_settings_of_no_known_method_are_refused(settings):
    with pytest.raises(ConfigError):
        quantization_from_dict(settings)


def test_settings_are_not_changed_by_being_read():
    settings = HQQ().to_dict()
    before = dict(settings)
    quantization_from_dict(settings)
    assert settings == before
