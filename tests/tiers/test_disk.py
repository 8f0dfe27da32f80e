"""A disk reader reads a file's bytes, past the page cache or through it, or names the error."""

import errno
import gc
import logging
import mmap
import os
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mixoff.errors import CheckpointError, MixoffError
from mixoff.tiers.aligned import PAGE
from mixoff.tiers.disk import DiskReader, SeekingPread, choose_io

NBYTES = 40 * PAGE + 1234
CONTENT = random.Random(0).randbytes(NBYTES)
BOTH = pytest.mark.parametrize("io", ["direct", "buffered"])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some bytes"
    path.write_bytes(CONTENT)
    return path


def buffer(nbytes: int) -> memoryview:
    """Return memory that begins on a page."""
    return memoryview(mmap.mmap(-1, nbytes))


def bytes_read(reader: DiskReader, file: Path, offset: int, nbytes: int) -> bytes:
    into = buffer(nbytes)
    return bytes(into[: reader.read(file, offset, into)])


def open_files() -> list[str]:
    links = Path("/proc/self/fd").iterdir()
    return sorted(str(link.readlink()) for link in links if link.exists())


def failing_first(call: Callable[..., int], *errors: BaseException) -> Callable[..., int]:
    """Return a call that raises each error once before it succeeds."""
    pending = list(errors)

    def wrapped(*arguments: Any) -> int:
        if pending:
            raise pending.pop(0)
        return call(*arguments)

    return wrapped


def refusing_direct(path: Path, flags: int) -> int:
    """Open a file as a file system without direct I/O does."""
    if flags & os.O_DIRECT:
        raise OSError(errno.EINVAL, "Invalid argument")
    return os.open(path, flags)


def short_reads(most: int) -> Callable[[int, Sequence[memoryview], int], int]:
    """Return a pread that reads a few bytes at once."""
    return lambda descriptor, buffers, offset: os.preadv(descriptor, [buffers[0][:most]], offset)


# ---- bytes


@BOTH
def test_whole_pages_are_read_at_any_offset(file, io):
    reader = DiskReader(io)
    for page in range(0, 41, 3):
        for pages in (1, 2, 7, 48):
            start, nbytes = page * PAGE, pages * PAGE
            assert bytes_read(reader, file, start, nbytes) == CONTENT[start : start + nbytes]


def test_any_range_is_read_through_the_page_cache(file):
    reader, draw = DiskReader("buffered"), random.Random(1)
    for _ in range(200):
        start, nbytes = draw.randrange(NBYTES + 9), draw.randrange(1, NBYTES)
        assert bytes_read(reader, file, start, nbytes) == CONTENT[start : start + nbytes]


@BOTH
@pytest.mark.parametrize(("offset", "count"), [(40 * PAGE, 1234), (41 * PAGE, 0), (99 * PAGE, 0)])
def test_a_count_is_short_where_the_file_ends(file, io, offset, count):
    assert DiskReader(io).read(file, offset, buffer(4 * PAGE)) == count


@BOTH
def test_a_file_of_whole_pages_ends_at_its_last_byte(tmp_path, io):
    (tmp_path / "pages").write_bytes(bytes(2 * PAGE))
    assert DiskReader(io).read(tmp_path / "pages", 0, buffer(4 * PAGE)) == 2 * PAGE


@BOTH
def test_an_empty_buffer_takes_nothing(file, io):
    assert DiskReader(io).read(file, 0, memoryview(bytearray())) == 0


def test_direct_io_is_used_where_it_was_requested(file):
    reader = DiskReader("direct")
    bytes_read(reader, file, 0, PAGE)
    assert (reader.io, reader.fallbacks) == ("direct", None)


@pytest.mark.parametrize(("offset", "start", "nbytes"), [(1, 0, PAGE), (0, 64, PAGE), (0, 0, 100)])
def test_direct_io_of_parts_of_pages_is_refused(file, offset, start, nbytes):
    with pytest.raises(AssertionError, match="pages"):
        DiskReader("direct").read(file, offset, buffer(2 * PAGE)[start : start + nbytes])


def test_a_system_without_preadv_reads_the_same_bytes_from_many_threads(file):
    reader = DiskReader("buffered", pread=SeekingPread())

    def right(start: int) -> bool:
        return bytes_read(reader, file, start, 3000) == CONTENT[start : start + 3000]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(right, range(0, NBYTES, 701)))


@BOTH
def test_many_threads_read_at_once(file, io):
    reader = DiskReader(io)

    def right(page: int) -> bool:
        start = page % 40 * PAGE
        return bytes_read(reader, file, start, 2 * PAGE) == CONTENT[start : start + 2 * PAGE]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(right, range(2000)))


# ---- errors


@BOTH
def test_a_missing_file_is_an_error_with_its_name(tmp_path, io):
    with pytest.raises(CheckpointError, match=r"nothing: can't be read \(No such file"):
        DiskReader(io).read(tmp_path / "nothing", 0, buffer(PAGE))


@BOTH
def test_reading_a_folder_is_an_error(tmp_path, io):
    with pytest.raises(CheckpointError, match=r"can't be read \("):
        DiskReader(io).read(tmp_path, 0, buffer(PAGE))


@BOTH
def test_a_read_that_fails_is_an_error_with_the_files_name_and_the_next_one_works(file, io):
    pread = failing_first(os.preadv, OSError(errno.EIO, "Input/output error"))
    reader = DiskReader(io, pread=pread)
    with pytest.raises(CheckpointError, match=r"some bytes: can't be read \(Input/output error\)"):
        bytes_read(reader, file, 0, PAGE)
    assert bytes_read(reader, file, 0, PAGE) == CONTENT[:PAGE]
    assert reader.fallbacks is None


@BOTH
def test_an_interrupted_read_is_repeated(file, io):
    reader = DiskReader(io, pread=failing_first(os.preadv, InterruptedError(), InterruptedError()))
    assert bytes_read(reader, file, 0, 2 * PAGE) == CONTENT[: 2 * PAGE]


@BOTH
@pytest.mark.parametrize("most", [PAGE, 3 * PAGE])
def test_short_reads_are_put_together(file, io, most):
    reader = DiskReader(io, pread=short_reads(most))
    assert bytes_read(reader, file, PAGE, 48 * PAGE) == CONTENT[PAGE:]
    assert reader.io == io


@pytest.mark.parametrize("most", [1, 777])
def test_reads_of_any_length_are_put_together_through_the_page_cache(file, most):
    reader = DiskReader("buffered", pread=short_reads(most))
    assert bytes_read(reader, file, 38 * PAGE, 4 * PAGE) == CONTENT[38 * PAGE :]


# ---- fallbacks


def in_pieces(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
    """Read as no file system should past the page cache: a page and a half."""
    whole = buffer(2 * PAGE)
    count = min(os.preadv(descriptor, [whole], offset // PAGE * PAGE), PAGE + PAGE // 2)
    begin = offset % PAGE
    count = min(count - begin, len(buffers[0]))
    buffers[0][:count] = whole[begin : begin + count]
    return count


@pytest.mark.parametrize(
    ("faults", "why"),
    [
        ({"open_file": refusing_direct}, "Invalid argument"),
        ({"pread": failing_first(os.preadv, OSError(errno.EINVAL, "Invalid"))}, "Invalid"),
        ({"pread": failing_first(os.preadv, OSError(errno.ENOTSUP, "Never"))}, "Never"),
        ({"pread": in_pieces}, "inside a page"),
    ],
    ids=["at open", "at the first read", "not supported", "half pages"],
)
def test_a_file_that_refuses_direct_io_is_read_through_the_page_cache(file, faults, why, caplog):
    reader = DiskReader("direct", **faults)
    with caplog.at_level(logging.WARNING, "mixoff.tiers.disk"):
        for _ in range(2):
            assert bytes_read(reader, file, 0, 48 * PAGE) == CONTENT
    assert reader.io == "buffered"
    assert str(file) in str(reader.fallbacks)
    assert why in str(reader.fallbacks)
    assert len(caplog.records) == 1


@pytest.mark.skipif(
    not Path("/proc/version").exists(), reason="needs a file that refuses direct I/O"
)
def test_a_file_of_this_machine_that_refuses_direct_io_is_read():
    reader = DiskReader("direct")
    assert bytes_read(reader, Path("/proc/version"), 0, PAGE) == Path("/proc/version").read_bytes()
    assert reader.io == "buffered"


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a file system in memory")
def test_a_file_in_memory_is_read_with_or_without_direct_io():
    file = Path(f"/dev/shm/mixoff-{os.getpid()}")
    try:
        file.write_bytes(CONTENT)
        assert bytes_read(DiskReader("direct"), file, PAGE, 48 * PAGE) == CONTENT[PAGE:]
    finally:
        file.unlink()


def test_a_file_keeps_direct_io_where_another_file_refuses_it(file, tmp_path, caplog):
    def open_file(path: Path, flags: int) -> int:
        return refusing_direct(path, flags) if "old" in path.name else os.open(path, flags)

    reader = DiskReader("direct", open_file=open_file)
    for name in ("old 1", "old 2"):
        (tmp_path / name).write_bytes(CONTENT)
        assert bytes_read(reader, tmp_path / name, PAGE, PAGE) == CONTENT[PAGE : 2 * PAGE]
    assert reader.io == "buffered"
    bytes_read(reader, file, 0, PAGE)
    assert reader.io == "direct"
    assert "old 1, and 1 more: no direct I/O" in str(reader.fallbacks)
    assert len(caplog.records) == 1


def test_threads_that_are_refused_at_once_all_get_their_bytes(file, caplog):
    all_read = threading.Barrier(4)

    def pread(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        if reader.io == "direct":
            all_read.wait(10)
            raise OSError(errno.EINVAL, "Invalid argument")
        return os.preadv(descriptor, buffers, offset)

    reader = DiskReader("direct", pread=pread)
    with ThreadPoolExecutor(4) as pool:
        contents = list(pool.map(lambda _: bytes_read(reader, file, 0, 48 * PAGE), range(4)))
    assert contents == [CONTENT] * 4
    assert len(caplog.records) == 1


# ---- ends


@BOTH
@pytest.mark.parametrize("end", ["closed", "closed twice", "dropped", "refused and closed"])
def test_no_file_stays_open_without_its_reader(file, io, end):
    gc.collect()
    before = open_files()
    errors = [OSError(errno.EINVAL, "Invalid")] * (io == "direct" and "refused" in end)
    reader = DiskReader(io, pread=failing_first(os.preadv, *errors))
    for _ in range(3):
        bytes_read(reader, file, 0, PAGE)
    assert len(open_files()) == len(before) + 1 + len(errors)
    if end == "dropped":
        del reader
    else:
        reader.close()
    if end == "closed twice":
        reader.close()
    assert open_files() == before


@BOTH
def test_a_file_that_cannot_be_read_leaves_nothing_open(tmp_path, io):
    before = open_files()
    reader = DiskReader(io, open_file=refusing_direct)
    with pytest.raises(CheckpointError):
        reader.read(tmp_path / "nothing", 0, buffer(PAGE))
    assert open_files() == before


def test_a_closed_reader_reads_nothing(file):
    reader = DiskReader("buffered")
    reader.close()
    with pytest.raises(MixoffError, match="was closed"):
        bytes_read(reader, file, 0, PAGE)


def test_closing_waits_for_reads_in_progress(file):
    begun, go_on = threading.Event(), threading.Event()

    def pread(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        begun.set()
        assert go_on.wait(10)
        return os.preadv(descriptor, buffers, offset)

    reader = DiskReader("buffered", pread=pread)
    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(bytes_read, reader, file, 0, PAGE)
        assert begun.wait(10)
        closing = pool.submit(reader.close)
        assert not closing.done()
        go_on.set()
        assert reading.result() == CONTENT[:PAGE]
        closing.result()


# ---- the choice


@pytest.mark.parametrize(
    ("free", "io"), [(10 * 2**30, "buffered"), (2**30, "buffered"), (2**30 - 1, "direct")]
)
def test_experts_that_the_page_cache_cannot_hold_are_read_past_it(free, io):
    assert choose_io(2**30, free)[0] == io


@pytest.mark.parametrize(
    ("free", "shown"), [(2**29, "512.00 MiB"), (2**31, "2.00 GiB"), (-5, "0 B")]
)
def test_the_reason_for_a_choice_has_its_numbers(free, shown):
    reason = choose_io(2**30, free)[1]
    assert "1.00 GiB" in reason
    assert shown in reason
