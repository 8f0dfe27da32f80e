"""A record is one piece of bytes, and its tensors are views into it that never overlap."""

import mmap
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixoff.errors import ConfigError
from mixoff.kernels import TorchKernels
from mixoff.quantization import HQQ, QuantizedTensor, StackedRows, Unquantized
from mixoff.quantization.packing import BITS
from mixoff.tiers.aligned import PAGE, aligned_buffer
from mixoff.tiers.record import RecordLayout

SCHEMES = [HQQ(nbits, 16, bits) for nbits in BITS for bits in (16, 8)]
SCHEMES += [Unquantized(dtype) for dtype in ("float32", "float16", "bfloat16")]

rows = st.integers(1, 40)
groups = st.integers(1, 150)
layouts = st.builds(
    lambda scheme, sizes: RecordLayout(
        scheme,
        tuple((f"matrix {n}", (rows, 16 * groups)) for n, (rows, groups) in enumerate(sizes)),
    ),
    st.sampled_from(SCHEMES),
    st.lists(st.tuples(rows, groups), min_size=1, max_size=4),
)


def parts_of(layout: RecordLayout, record: Tensor) -> list[Tensor]:
    return [part for matrix in layout.tensors(record).values() for part in matrix.parts.values()]


def extents(layout: RecordLayout, record: Tensor) -> list[tuple[int, int]]:
    """Return where each part begins and ends in the record, in storage order."""
    starts = [part.data_ptr() - record.data_ptr() for part in parts_of(layout, record)]
    nbytes = [part.nbytes for part in parts_of(layout, record)]
    return [(start, start + n) for start, n in zip(starts, nbytes, strict=True)]


@given(layouts)
def test_every_part_begins_on_a_cache_line(layout):
    assert all(start % 64 == 0 for start, _ in extents(layout, aligned_buffer(layout.nbytes)))


@given(layouts)
def test_no_two_parts_share_a_byte(layout):
    ranges = extents(layout, aligned_buffer(layout.nbytes))
    assert all(end <= start for (_, end), (start, _) in pairwise(ranges))


@given(layouts)
def test_a_record_ends_where_its_last_part_does(layout):
    assert extents(layout, aligned_buffer(layout.nbytes))[-1][1] == layout.nbytes


@given(layouts)
def test_the_next_record_begins_on_the_next_page(layout):
    assert layout.stride % PAGE == 0
    assert 0 <= layout.stride - layout.nbytes < PAGE


def test_a_record_of_one_page_is_followed_by_the_next_at_once():
    assert RecordLayout(Unquantized("float32"), (("weight", (16, 64)),)).stride == PAGE


@given(layouts, st.integers(0, 2**32 - 1))
def test_packing_the_tensors_of_a_record_gives_the_record(layout, seed):
    generator = torch.Generator().manual_seed(seed)
    record = torch.zeros(layout.nbytes, dtype=torch.uint8)
    for start, end in extents(layout, record):
        record[start:end] = torch.randint(
            256, (end - start,), generator=generator, dtype=torch.uint8
        )
    assert torch.equal(layout.pack(layout.tensors(record)), record)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_packed_matrix_is_the_same_matrix(scheme):
    weights = {
        "gate_up_proj": torch.randn(24, 64, generator=torch.Generator().manual_seed(0)),
        "down_proj": torch.randn(64, 16, generator=torch.Generator().manual_seed(1)),
    }
    quantized = {name: QuantizedTensor.quantize(w, scheme) for name, w in weights.items()}
    layout = RecordLayout(scheme, tuple((name, tuple(w.shape)) for name, w in weights.items()))
    views = layout.tensors(layout.pack(quantized))
    assert views.keys() == weights.keys()
    for name, view in views.items():
        assert torch.equal(view.dequantize(), quantized[name].dequantize())


def test_writing_into_a_tensor_writes_into_its_record():
    layout = RecordLayout(HQQ(4, 16), (("weight", (8, 32)),))
    record = torch.zeros(layout.nbytes, dtype=torch.uint8)
    for part in parts_of(layout, record):
        part.fill_(1)
    assert (record == 0x01).sum() == 8 * 32 // 2  # W_q
    assert (record == 0x3C).sum() == 2 * 8 * 2  # the high byte of each float16 scale and zero


def test_tensors_are_read_from_a_larger_buffer_too():
    layout = RecordLayout(Unquantized("float32"), (("weight", (2, 3)),))
    buffer = torch.zeros(layout.stride, dtype=torch.uint8)
    assert layout.tensors(buffer)["weight"].dequantize().shape == (2, 3)


def test_parts_lie_at_the_offsets_of_the_layout():
    shapes = (("up", (2, 3)), ("down", (3, 2)))
    layout = RecordLayout(Unquantized("float32"), shapes, offsets=(28, 4))
    record = torch.arange(13, dtype=torch.float32).view(torch.uint8)
    tensors = layout.tensors(record)
    assert tensors["up"].dequantize().tolist() == [[7, 8, 9], [10, 11, 12]]
    assert tensors["down"].dequantize().tolist() == [[1, 2], [3, 4], [5, 6]]
    assert layout.nbytes == record.nbytes


@pytest.mark.parametrize("scheme", SCHEMES)
def test_matrices_with_one_name_are_one_matrix_of_all_their_rows(scheme):
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(rows, 32, generator=generator) for rows in (8, 24)]
    stacked = StackedRows(tuple(QuantizedTensor.quantize(w, scheme) for w in weights))
    layout = RecordLayout(scheme, (("gate_up", (8, 32)), ("gate_up", (24, 32))))
    matrix = layout.tensors(layout.pack({"gate_up": stacked}))["gate_up"]
    assert matrix.shape == (32, 32)
    assert matrix.nbytes == stacked.nbytes == sum(piece.nbytes for piece in matrix.pieces)
    expected = torch.cat([piece.dequantize() for piece in stacked.pieces])
    assert torch.equal(matrix.dequantize(), expected)
    x = torch.randn(5, 32, generator=generator)
    assert torch.allclose(
        TorchKernels().matmul(matrix, x), torch.nn.functional.linear(x, expected), atol=1e-5
    )


def test_a_layout_that_cannot_store_its_matrix_is_refused_before_its_first_use():
    with pytest.raises(ConfigError, match="group_size=64 does not divide the 96 inputs"):
        RecordLayout(HQQ(4, 64), (("weight", (8, 96)),))


@pytest.mark.parametrize("nbytes", [0, 1, PAGE, 3 * PAGE + 5, (5 << 20) + 5])
def test_a_buffer_has_the_requested_size_and_begins_on_a_page(nbytes):
    buffer = aligned_buffer(nbytes)
    assert buffer.shape == (nbytes,)
    assert buffer.data_ptr() % PAGE == 0 or nbytes == 0


def mapping(address: int) -> list[str]:
    """Return the system's lines about the mapping with an address; none if it isn't mapped."""
    lines: list[str] = []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, last = line.split(" ")[0].partition("-")
        if last:
            if lines:
                break
            if int(first, 16) <= address < int(last, 16):
                lines.append(line)
        elif lines:
            lines.append(line)
    return lines


linux = pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="needs huge pages")


@linux
def test_a_large_buffer_is_in_huge_pages_except_for_its_last_part():
    nbytes = (5 << 20) + 5
    buffer = aligned_buffer(nbytes)
    start = buffer.data_ptr()
    flags = [mapping(start + at)[-1].split() for at in (0, (4 << 20) - 1, 4 << 20)]
    assert ["hg" in words for words in flags] == [True, True, False]
    buffer.fill_(1)
    assert int(buffer.sum()) == nbytes


@linux
def test_a_large_buffer_is_freed_with_its_last_view():
    view = aligned_buffer(64 << 20)[5:7]
    address = view.data_ptr()
    assert "hg" in mapping(address)[-1].split()
    del view
    assert "hg" not in " ".join(mapping(address)[-1:]).split()


def test_buffers_that_are_made_in_inference_mode_are_written_to_outside_it():
    with torch.inference_mode():
        buffers = [aligned_buffer(5000), aligned_buffer(3 << 20)]
    for buffer in buffers:
        buffer[1:].copy_(torch.ones(len(buffer) - 1, dtype=torch.uint8))
