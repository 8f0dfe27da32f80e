"""A conversion that is killed or fails is resumed later, and makes the same bytes."""

import errno
import faulthandler
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import namedtuple
from collections.abc import Callable
from functools import partial as partial_
from pathlib import Path

import pytest
from tqdm.auto import tqdm  # the class that conversions use: each has a lock of its own

from mixoff.checkpoints.source_files import FolderFiles
from mixoff.convert import Conversion, quantize_checkpoint
from mixoff.errors import CheckpointError, ConfigError, MixoffError
from mixoff.quantization import Scheme
from support.faulty_files import FaultyFiles
from support.tiers import examples
from support.tiny import EXACT, MIXED

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks, and locks folders")
FAULTS = (errno.EIO, errno.ENOSPC, errno.EACCES)


@pytest.fixture(scope="module")
def source(tiny_mixtral: Callable[..., Path]) -> Path:
    return tiny_mixtral(experts=2, num_hidden_layers=1)


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict]:
    """Return what an uninterrupted conversion makes."""

    def convert(scheme: Scheme) -> dict[str, bytes]:
        folder = tmp_path_factory.mktemp("whole") / "model"
        return contents(quantize_checkpoint(source, folder, scheme, progress=False))

    return convert


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def partial(target: Path) -> Path:
    return target.parent / f".{target.name}.partial"


def convert(source: Path, target: Path, scheme: Scheme) -> Path:
    return quantize_checkpoint(source, target, scheme, progress=False)


def finish(source: Path, target: Path, scheme: Scheme) -> None:
    """Do it again, as a person does who doesn't know how far it came."""
    try:
        convert(source, target, scheme)
    except ConfigError as error:
        if "exists already" not in str(error):
            raise


def start_child(work: Callable[[], object]) -> int:
    """Do something in a process of its own; it exits with 0, or 1 if refused, or 2. Return its id.

    tqdm's lock is one for a process and all that it forks: a child that is killed while it holds it
    would make all others wait for ever, so a child gets its own.
    """
    if child := os.fork():
        return child
    status = 0
    try:
        faulthandler.register(signal.SIGALRM, chain=True)  # a hang fails, and says where it is
        signal.alarm(30)
        tqdm.set_lock(threading.RLock())
        work()
    except MixoffError:
        status = 1
    except BaseException:
        traceback.print_exc()
        status = 2
    finally:
        os._exit(status)


def in_child(work: Callable[[], object], kill_after_s: float | None = None) -> int:
    """Do something in a process of its own, which may be killed; return its exit status."""
    child = start_child(work)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_conversion_killed_at_any_moment_ends_with_the_same_bytes(source, expected, tmp_path):
    whole, draw = expected(MIXED), random.Random(0)
    seconds = 60.0
    for number in range(3):  # the shortest of them: a busy machine would let all kills come late
        started = time.perf_counter()
        assert not in_child(partial_(convert, source, tmp_path / f"timed {number}", MIXED))
        seconds = min(seconds, time.perf_counter() - started)
    killed = []
    rounds = examples(50)
    for number in range(rounds):
        target = tmp_path / f"{number}" / "model"
        # The second kill hits the resumed conversion.
        for moment in ((number + draw.random()) / (0.96 * rounds), draw.random()):
            work = partial_(convert, source, target, MIXED)
            status = in_child(work, moment * seconds)
            killed.append(status == -signal.SIGKILL)
            assert status in (0, -signal.SIGKILL) or target.exists()
            assert not target.exists() or contents(target) == whole
        finish(source, target, MIXED)
        assert contents(target) == whole
        assert [*target.parent.iterdir()] == [target]
    assert sum(killed) > rounds / 5 - 1  # of two a round; the others had ended


def test_a_conversion_killed_at_any_file_operation_ends_with_the_same_bytes(
    source, expected, tmp_path
):
    whole, number = expected(EXACT), 0
    while True:
        target = tmp_path / f"{number}" / "model"

        def work(target: Path = target, number: int = number) -> None:
            with FaultyFiles(tmp_path, number, "kill"):
                convert(source, target, EXACT)

        status = in_child(work)
        assert not target.exists() or contents(target) == whole
        if not status:
            break
        assert status == -signal.SIGKILL
        finish(source, target, EXACT)
        assert contents(target) == whole
        assert [*target.parent.iterdir()] == [target]
        number += 180 // examples(60)
    assert number > 150


def operations(source: Path, folder: Path) -> FaultyFiles:
    """Return the operations of a conversion that goes well."""
    with FaultyFiles(folder) as files:
        convert(source, folder / "model", EXACT)
    return files


def open_descriptors() -> int:
    return len([*Path("/dev/fd").iterdir()])


@pytest.mark.parametrize("short", [False, True], ids=["errors", "short reads and writes"])
def test_whatever_file_operation_fails_the_resumed_conversion_makes_the_same_bytes(
    source, expected, tmp_path, short
):
    copy = tmp_path / "source"
    copy.mkdir()
    for path in source.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    names = [name for name, _ in operations(copy, tmp_path).done]
    numbers = [n for n, name in enumerate(names) if name in ("read", "write") or not short]
    numbers = numbers[:: -(-len(numbers) // examples(len(numbers)))]
    whole, descriptors, failed = expected(EXACT), open_descriptors(), 0
    for number in numbers:
        fault = "short" if short else FAULTS[number % len(FAULTS)]
        target = tmp_path / f"{number}" / "model"
        complaint = ""
        try:
            with FaultyFiles(tmp_path, number, fault) as files:
                convert(copy, target, EXACT)
        except MixoffError as error:
            complaint = str(error)
            failed += 1
        assert not complaint or str(tmp_path) in complaint, files.done[number]
        assert "\n" not in complaint
        assert open_descriptors() == descriptors, files.done[number]
        assert not target.exists() or contents(target) == whole, files.done[number]
        finish(copy, target, EXACT)
        assert contents(target) == whole, files.done[number]
        assert [*target.parent.iterdir()] == [target], files.done[number]
    assert len(names) > 180
    assert not failed if short else failed > len(numbers) // 2


def test_no_file_is_touched_in_a_way_that_the_faults_do_not_reach(source, tmp_path):
    events: list[tuple[str, str]] = []
    watching = [True]

    def hook(event: str, args: tuple[object, ...]) -> None:
        known = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir")
        if watching[0] and event in (*known, "os.scandir", "os.truncate", "os.link", "os.symlink"):
            events.append((event, str(args[0])))

    sys.addaudithook(hook)
    try:
        files = operations(source, tmp_path)
    finally:
        watching[0] = False
    mine = [event for event in events if event[1].startswith(str(tmp_path))]
    names = ("open", "open file", "rename", "replace", "unlink", "mkdir", "rmdir", "listdir")
    counted = [path for name, path in files.done if name in (*names, "scandir")]
    assert sorted(path for _, path in mine) == sorted(p for p in counted if p[0] == "/")
    assert {"fsync", "replace", "rename", "write", "flock", "statvfs", "unlink"} <= {*files.counts}


def test_files_are_on_the_disk_before_they_get_their_names(source, tmp_path):
    done = operations(source, tmp_path).done
    for number, (name, _) in enumerate(done):
        if name in ("replace", "rename"):
            assert "fsync" in [before for before, _ in done[number - 3 : number]]
            after = [later for later, _ in done[number + 1 : number + 4]]
            assert after == ["open", "fsync", "close"]


# ---- which conversion an unfinished one is


@pytest.fixture
def begun(source: Path, tmp_path: Path) -> Path:
    """Return the target of a conversion that was killed with one file finished."""
    target = tmp_path / "out" / "model"

    class Killed(FolderFiles):
        def fetch(self, name: str) -> None:
            if (partial(target) / "model" / "trunk.safetensors").exists():
                os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(lambda: convert(Killed(source), target, EXACT)) == -signal.SIGKILL
    return target


def test_an_unfinished_conversion_of_another_scheme_is_refused_by_its_folders_name(source, begun):
    with pytest.raises(ConfigError, match=r"\.model\.partial: .* of another scheme: .*--restart"):
        convert(source, begun, MIXED)
    assert [*begun.parent.iterdir()] == [partial(begun)]


def test_an_unfinished_conversion_of_another_source_is_refused(tiny_mixtral, begun):
    second = tiny_mixtral(experts=2, num_hidden_layers=1, seed=1)
    with pytest.raises(ConfigError, match=r"\.model\.partial: .* of another source"):
        convert(second, begun, EXACT)


def test_an_unfinished_conversion_is_thrown_away_if_asked_for(source, begun, expected):
    quantize_checkpoint(source, begun, MIXED, progress=False, restart=True)
    assert contents(begun) == expected(MIXED)
    assert [*begun.parent.iterdir()] == [begun]


def test_a_finished_file_is_not_made_again(source, begun, monkeypatch):
    fetched = []
    monkeypatch.setattr(FolderFiles, "fetch", lambda files, name: fetched.append(name))
    convert(source, begun, EXACT)
    assert len(fetched) == 1  # for the layer; the non-expert parameters were there


@pytest.mark.parametrize("where", ["header", "data", "length"])
def test_a_finished_file_that_is_damaged_never_gets_into_the_target(source, begun, expected, where):
    path = partial(begun) / "model" / "trunk.safetensors"
    content = bytearray(path.read_bytes())
    if where == "length":
        del content[-1:]
    else:
        content[40 if where == "header" else -1] ^= 1
    path.write_bytes(content)
    if where == "data":  # which only reading all of it tells
        with pytest.raises(CheckpointError, match="the checksum of"):
            convert(source, begun, EXACT)
        assert not begun.exists()
    convert(source, begun, EXACT)
    assert contents(begun) == expected(EXACT)


def test_a_second_conversion_to_the_same_target_is_refused(source, tmp_path):
    target = tmp_path / "model"

    class Other(FolderFiles):
        def fetch(self, name: str) -> None:
            with pytest.raises(ConfigError, match="another process converts to"):
                convert(source, target, EXACT)

    convert(Other(source), target, EXACT)
    assert [*tmp_path.iterdir()] == [target]


def test_two_conversions_at_once_do_no_harm_where_nothing_can_be_locked(
    source, expected, tmp_path, monkeypatch
):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    target, whole = tmp_path / "model", expected(EXACT)
    for number in range(10):
        children = [start_child(lambda: convert(source, target, EXACT)) for _ in range(2)]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert 2 not in statuses
        if not target.exists():
            convert(source, target, EXACT)
        assert contents(target) == whole
        target.rename(tmp_path / f"done {number}")


# ---- disk space

Usage = namedtuple("Usage", "total used free")


def test_the_size_is_known_to_the_byte_before_it_starts(source, tmp_path):
    for number, scheme in enumerate((EXACT, MIXED)):
        conversion = Conversion(FolderFiles(source), tmp_path / f"{number}", scheme)
        nbytes = conversion.nbytes
        assert nbytes == sum(map(len, contents(conversion.run(progress=False)).values()))


def test_a_disk_that_is_too_small_is_refused_with_both_sizes(source, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(2**30, 0, 2**20 // 8))
    with pytest.raises(CheckpointError, match=r"takes 0\.\d+ GiB .* 0\.000 GiB are free"):
        convert(source, tmp_path / "model", EXACT)
    assert not [*tmp_path.iterdir()]


def test_what_is_finished_takes_no_more_room(source, begun, expected, monkeypatch):
    done = (partial(begun) / "model" / "trunk.safetensors").stat().st_size
    nbytes = Conversion(FolderFiles(source), begun, EXACT).nbytes
    free, whole = nbytes - done + 100_000, expected(EXACT)
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(2**30, 0, free))
    convert(source, begun, EXACT)
    assert contents(begun) == whole
