"""A checkpoint of somebody who means harm is refused by name: no hang, no crash, no code of its.

Each case is opened in a process of its own, which may take 256 MiB more than it has. What the worst
case took is printed at the end (``pytest -s``).
"""

import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import torch

import mixoff
from mixoff.chat.load import load_tokenizer
from mixoff.checkpoints.formats import open_checkpoint
from mixoff.checkpoints.safetensors_read import read_shard
from mixoff.config import OffloadConfig
from mixoff.convert import quantize_checkpoint
from mixoff.errors import CheckpointError, MixoffError
from mixoff.models.build import build_model
from mixoff.trace.file import read as read_trace
from support.mixtral_offloading_writer import Bits, write_released
from support.tiny import MIXED, random_mixtral

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of a process are Linux's")

INDEX = "model.safetensors.index.json"
ALLOWED_NBYTES = 256 << 20
WATCHDOG_SECONDS = 20  # what hangs ends, on a busy machine too
FORMS = ("ours", "released", "source")


# ---- folders


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a whole folder of each form: ours, the released layout, an unquantized Mixtral."""
    root = tmp_path_factory.mktemp("whole")
    model = random_mixtral(experts=2)
    model.save_pretrained(root / "source", max_shard_size="100KB")
    quantize_checkpoint(root / "source", root / "ours", MIXED, progress=False)
    bits = Bits(4, 16, 128)
    write_released(model.float(), root / "released", attention=bits, experts=bits)
    return {form: root / form for form in FORMS}


def weights(folder: Path) -> Path:
    return min(folder.glob("*.safetensors"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:end]), raw[end:]


def write_header(path: Path, header: Any, data: bytes) -> None:
    """Write a file anew, and a checksum of its header as a hostile writer would."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    index = json.loads((path.parent / INDEX).read_text())
    if path.name in index["metadata"].get("header_crc32", {}):
        index["metadata"]["header_crc32"][path.name] = f"{zlib.crc32(raw):08x}"
        (path.parent / INDEX).write_text(json.dumps(index))


# ---- cases: what is done to a folder, and what its refusal names

Damage = Callable[[Path], object]
CONFIG, WEIGHTS = "config.json", "the weights"


def setting(**changes: Any) -> Damage:
    return lambda folder: edit(folder / CONFIG, **changes)


def text(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def weights_are(content: bytes, size: int | None = None) -> Damage:
    def damage(folder: Path) -> None:
        with weights(folder).open("wb") as file:
            file.write(content)
            if size:
                file.truncate(size)

    return damage


def header_is(make: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        header, data = header_of(weights(folder))
        write_header(weights(folder), make(header), data)

    return damage


def first_entry(**changes: Any) -> Damage:
    """Change the entry of the tensor that comes first."""

    def make(header: dict[str, Any]) -> dict[str, Any]:
        name = min(header.keys() - {"__metadata__"}, key=lambda n: header[n]["data_offsets"])
        return header | {name: header[name] | changes}

    return header_is(make)


def index_names(*files: object) -> Damage:
    """Let the index place tensors in other files."""

    def damage(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        more = {f"stranger.{number}": file for number, file in enumerate(files)}
        index["weight_map"] |= more
        if "header_crc32" in index["metadata"]:
            index["metadata"]["header_crc32"] |= {str(file): "00000000" for file in files}
        (folder / INDEX).write_text(json.dumps(index))

    return damage


def replaced(name: str, make: Callable[[Path], object]) -> Damage:
    def damage(folder: Path) -> None:
        path = weights(folder) if name == WEIGHTS else folder / name
        path.unlink()
        make(path)

    return damage


def sparse(nbytes: int) -> Callable[[Path], object]:
    return lambda path: (path.touch(), os.truncate(path, nbytes))


def bare(name: str = "w") -> bytes:
    return f'"{name}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'.encode()


def many_tensors(count: int) -> Damage:
    raw = b"{" + b",".join(bare(str(number)) for number in range(count)) + b"}"
    return weights_are(struct.pack("<Q", len(raw)) + raw)


def many_files(count: int) -> Damage:
    """Let the index name links to one file whose header is as long as headers may be."""

    def damage(folder: Path) -> None:
        raw = b'{"__metadata__":{"x":"' + b"x" * (3 << 20) + b'"},' + bare() + b"}"
        names = [f"{number}.safetensors" for number in range(count)]
        write_header(folder / names[0], raw, b"")
        for name in names[1:]:
            (folder / name).hardlink_to(folder / names[0])
        index_names(*names)(folder)
        index = json.loads((folder / INDEX).read_text())
        if "header_crc32" in index["metadata"]:
            crc = f"{zlib.crc32(raw):08x}"
            index["metadata"]["header_crc32"] |= dict.fromkeys(names, crc)
            (folder / INDEX).write_text(json.dumps(index))

    return damage


BOMBS = {
    "nested 100,000 deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested 500 deep": b'{"a":' + b"[" * 500 + b"]" * 500 + b"}",
    "a key twice": b'{"a": 1, "a": 2}',
    "100,000 keys, one twice": b"{" + b",".join(b'"%d":1' % n for n in [*range(100_000), 7]) + b"}",
    "not a number": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "a number past the largest": b'{"a": 1e999}',
    "5,000 digits": b'{"a": ' + b"7" * 5000 + b"}",
    "half a character": b'{"a": "\\ud800"}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "3 MB of lists": b'{"a":[' + b"[]," * 1_000_000 + b"[]]}",
    "4 MB of objects, cut off": b'{"a":[' + b"{}," * 1_390_000,
    "a name of 3 MB": b'{"' + b"a" * 3_000_000 + b'": 1}',
    "a text of 3 MB": b'"' + b"a" * 3_000_000 + b'"',
    "a list": b"[]",
    "nothing": b"",
}
WRONG_SIZES = (0, -1, True, 2.0, "8", None, [8], {}, 1 << 62, 10**19)
SIZES = (
    "num_hidden_layers",
    "num_local_experts",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "num_experts_per_tok",
    "max_position_embeddings",
    "head_dim",
)
FILES = {
    "a file above": "../x.safetensors",
    "an absolute file": "/etc/x.safetensors",
    "a file below": "a/x.safetensors",
    "a backslash": "..\\x.safetensors",
    "a drive": "c:x.safetensors",
    "a null byte": "a\0.safetensors",
    "the folder": ".",
    "the folder above": "..",
    "no name": "",
    "a pickle's name": "pytorch_model.bin",
    "a hidden file": ".safetensors",
    "a name of 300 bytes": "x" * 300 + ".safetensors",
    "a name of 2 MB": "x" * 2_000_000 + ".safetensors",
}
PRETENDERS = {
    "a pickle": b"\x80\x04\x95" + bytes(100),
    "a zip archive": b"PK\x03\x04" + bytes(100),
    "a GGUF": b"GGUF\x03\0\0\0" + bytes(100),
    "HTML": b"<!DOCTYPE html><title>503</title>" + bytes(100),
    "a pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "empty": b"",
}


def _cases() -> Iterator[tuple[str, str, Damage]]:
    """Yield each case's name, what its refusal names, and what makes it."""
    for kind, content in BOMBS.items():
        yield f"config: {kind}", CONFIG, text(CONFIG, content)
        yield f"index: {kind}", INDEX, text(INDEX, content)
        raw = struct.pack("<Q", len(content)) + content
        yield f"header: {kind}", WEIGHTS, weights_are(raw, None)
    for name in SIZES:
        for value in WRONG_SIZES:
            if value is not None or name not in ("head_dim", "num_experts_per_tok"):
                yield f"{name}={value!r}", name, setting(**{name: value})
    yield "10**9 layers", "", setting(num_hidden_layers=10**9)
    yield "10**9 experts", "", setting(num_local_experts=10**9)
    yield "more experts a token than there are", CONFIG, setting(num_experts_per_tok=3)
    yield "heads that don't fall into groups", CONFIG, setting(num_key_value_heads=3)
    for name in ("auto_map", "custom_pipelines", "attn_implementation", "transformers_weights"):
        yield f"code by {name}", name, setting(**{name: {"AutoConfig": "evil.Evil"}})
    for value in ("os", "float64", 7, ["float16"], {}):
        yield f"dtype={value!r}", "dtype", setting(dtype=value)
    yield "an unknown method", "evil", setting(quantization_config={"quant_method": "evil"})
    yield "an unknown model", CONFIG, setting(model_type="evil")
    yield "a model's name of 1 MB", CONFIG, setting(model_type="m" * 1_000_000)
    for kind, file in FILES.items():
        yield f"index names {kind}", INDEX, index_names(file)
    yield "index names case twins", INDEX, index_names("a.safetensors", "A.safetensors")
    yield (
        "index names 20,000 files",
        INDEX,
        index_names(*(f"{n}.safetensors" for n in range(20000))),
    )
    yield "300 headers of 3 MB", "header", many_files(300)
    for kind, content in PRETENDERS.items():
        yield f"weights: {kind}", WEIGHTS, weights_are(content)
        yield f"settings: {kind}", CONFIG, text(CONFIG, content)
    for length in (0, 1, 99_000_000, 1 << 63, (1 << 64) - 1):
        raw = struct.pack("<Q", length)
        yield f"a header of {length} bytes", WEIGHTS, weights_are(raw, 200_000_000)
    yield "a million tensors", WEIGHTS, many_tensors(1_000_000)
    yield "10,000 tensors", "", many_tensors(10_000)
    for shape in ([1 << 63], [1 << 32, 1 << 32], [4194305, 4194305, 211106198978564], [1] * 300):
        yield f"shape {str(shape)[:40]}", WEIGHTS, first_entry(shape=shape)
    for shape in (7, "7", None, {}, [True], [2.0], ["2"], [-1], [None], [[2]]):
        yield f"shape {shape!r}", WEIGHTS, first_entry(shape=shape)
    for offsets in (
        [8, 0],
        [0, 1 << 62],
        [-8, 0],
        [1, 2, 3],
        [0.0, 8.0],
        [False, True],
        "01",
        None,
    ):
        yield f"offsets {offsets!r}", WEIGHTS, first_entry(data_offsets=offsets)
    for dtype in (7, None, [], "U8" * 500_000, "Q4"):
        yield f"type {str(dtype)[:9]}", "", first_entry(dtype=dtype)
    yield "a hole", WEIGHTS, header_is(lambda h: h | {"x": _u8(10**6, 10**6 + 1)})
    yield "an overlap", WEIGHTS, header_is(lambda h: h | {"x": _u8(0, 1)})
    yield "a tail", WEIGHTS, lambda f: weights(f).write_bytes(weights(f).read_bytes() + b"!")
    yield "a name of 100,000", WEIGHTS, header_is(lambda h: h | {"x" * 100_000: _u8(0, 0)})
    for name in (CONFIG, INDEX, WEIGHTS):
        yield f"{name} is a pipe", name, replaced(name, os.mkfifo)
        yield f"{name} is a device", name, replaced(name, lambda p: p.symlink_to("/dev/zero"))
        yield f"{name} is a folder", name, replaced(name, Path.mkdir)
        yield f"{name} leads to itself", name, replaced(name, lambda p: p.symlink_to(p))
        yield f"{name} is 1 GB of nothing", name, replaced(name, sparse(10**9))


def _u8(begin: int, end: int) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}


def _scheme(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        settings = json.loads((folder / CONFIG).read_text())["quantization_config"]
        edit(folder / CONFIG, quantization_config=settings | changes)

    return damage


HQQ4 = {"method": "hqq", "nbits": 4, "group_size": 16, "scale_nbits": 16}
OURS_ALONE = {
    f"attention={value!r}": (CONFIG, _scheme(attention=value))
    for value in (
        [],
        None,
        "hqq",
        {},
        {"method": []},
        {"method": {}},
        {"method": "m" * 1_000_000},
        {"method": "hqq", "x" * 1_000_000: 1},
        HQQ4 | {"nbits": True},
        HQQ4 | {"nbits": 4.0},
        HQQ4 | {"nbits": 10**18},
        HQQ4 | {"group_size": True},
        HQQ4 | {"group_size": 16.0},
        HQQ4 | {"group_size": -16},
        HQQ4 | {"scale_nbits": "8"},
        HQQ4 | {"scale_nbits": 16.0},
        {"method": "none", "dtype": ["float16"]},
        {"method": "none", "dtype": "os"},
    )
} | {
    "a group of 10**18": ("", _scheme(attention=HQQ4 | {"group_size": 10**18})),
    "version true": (CONFIG, _scheme(format_version=True)),
    "version 1.0": (CONFIG, _scheme(format_version=1.0)),
    "other weights beside": ("model.safetensors", lambda f: (f / "model.safetensors").touch()),
    "an adapter": ("adapter_config.json", text("adapter_config.json", b"{}")),
}
# What only building a model looks at.
BUILT_ALONE = {
    f"{name}={value!r}": (CONFIG, setting(**{name: value}))
    for name, value in (
        ("hidden_act", "evil"),
        ("hidden_act", ["silu"]),
        ("rms_norm_eps", "a"),
        ("rope_parameters", [1]),
        ("rope_parameters", {"rope_type": "evil"}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": "a"}),
        ("sliding_window", "a"),
        ("tie_word_embeddings", "yes"),
        ("pad_token_id", 10**18),
    )
} | {
    "generation of the wrong type": ("generation", text("generation_config.json", b'{"x"')),
    "generation of 1 GB": ("generation", lambda f: sparse(10**9)(f / "generation_config.json")),
    "generation that can't be": (
        "generation",
        text("generation_config.json", b'{"max_new_tokens": -1}'),
    ),
}

ALL = {name: (named, damage) for name, named, damage in _cases()}
READ_BY_NAMES = {"an unknown method"}  # the released layout is told by its files, whatever is said
CASES = [
    (form, case)
    for form in FORMS
    for case in ALL
    if form != "released" or case not in READ_BY_NAMES
]


# ---- doors, each in a process of its own


def run(door: Callable[[], object], folder: Path) -> dict[str, Any]:
    """Return how a door ended in a child with little memory, what it took, and what it touched."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.close(reading)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(WATCHDOG_SECONDS)
            told = json.dumps(_limited(door, folder)).encode()
            os.write(writing, told[:60_000])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    assert told, f"the process ended with status {status} and told nothing"
    return json.loads(told)  # type: ignore[no-any-return]


def _limited(door: Callable[[], object], folder: Path) -> dict[str, Any]:
    touched: list[str] = []
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ALLOWED_NBYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, perf_counter()
    sys.addaudithook(lambda event, args: _note(event, args, folder, touched))
    try:
        door()
        kind, message = "nothing", ""
    except MixoffError as error:
        kind, message = "refused", str(error)
    except BaseException as error:  # what this test is for
        kind, message = type(error).__name__, str(error)
    seconds = perf_counter() - began
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "kind": kind,
        "message": message[:5000],
        "seconds": seconds,
        "mib": taken / 1024,
        "touched": touched[:20],
    }


def _note(event: str, args: tuple[Any, ...], folder: Path, touched: list[str]) -> None:
    """Note what no checkpoint may cause."""
    if event in ("pickle.find_class", "os.system", "subprocess.Popen", "socket.connect", "os.exec"):
        touched.append(f"{event} {args!r:.200}")
    elif event == "exec" and str(folder) in getattr(args[0], "co_filename", ""):
        touched.append(f"exec {args[0].co_filename}")
    elif event == "open" and isinstance(args[0], str | bytes):
        parent = (
            Path(os.fsdecode(args[0])).absolute().parent
        )  # a link that stands there may lead out
        if not str(parent.resolve()).startswith(_may_open(folder)):
            touched.append(f"open {args[0]!r:.200}")


def _may_open(folder: Path) -> tuple[str, ...]:
    code = (sys.prefix, sys.base_prefix, str(Path(mixoff.__file__).parents[2]))
    return str(folder.parent.resolve()), "/proc", "/sys", *code


WORST: dict[str, tuple[float, str]] = {}


@pytest.fixture(scope="module", autouse=True)
def _print_worst() -> Iterator[None]:
    yield
    print("\nworst of all hostile checkpoints:", WORST)


def refusal(door: Callable[[], object], folder: Path, case: str) -> str:
    """Return the message that a door refuses with; it must neither do anything else nor escape."""
    told = run(door, folder)
    for what in ("seconds", "mib"):
        WORST[what] = max(WORST.get(what, (0.0, "")), (told[what], case))
    assert told["kind"] == "refused", told
    assert not told["touched"], told
    assert len(told["message"]) < 2000
    return str(told["message"])


def copied(originals: dict[str, Path], form: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals[form], tmp_path / "folder"))


def named_in(message: str, folder: Path, named: str, shard: str) -> bool:
    return str(folder) in message and (shard if named == WEIGHTS else named) in message


def open_door(form: str, folder: Path) -> Callable[[], object]:
    if form == "source":
        target = folder.parent / "target"
        return lambda: quantize_checkpoint(folder, target, MIXED, progress=False)
    return lambda: open_checkpoint(folder)


@pytest.mark.parametrize(("form", "case"), CASES)
def test_a_hostile_checkpoint_is_refused_by_name(originals, tmp_path, form, case):
    folder = copied(originals, form, tmp_path)
    named, damage = ALL[case]
    shard = weights(folder).name
    damage(folder)
    assert named_in(
        refusal(open_door(form, folder), folder, f"{form}: {case}"), folder, named, shard
    )


# Every fifth, since building begins with opening.
@pytest.mark.parametrize(("form", "case"), [c for c in CASES if c[0] != "source"][::5])
def test_no_model_is_built_of_a_hostile_checkpoint(originals, tmp_path, form, case):
    folder = copied(originals, form, tmp_path)
    named, damage = ALL[case]
    shard = weights(folder).name
    damage(folder)
    message = refusal(lambda: build_model(folder), folder, f"{form}, built: {case}")
    assert named_in(message, folder, named, shard)


@pytest.mark.parametrize("case", OURS_ALONE)
def test_hostile_settings_of_mixoffs_own_are_refused_by_name(originals, tmp_path, case):
    folder = copied(originals, "ours", tmp_path)
    named, damage = OURS_ALONE[case]
    damage(folder)
    assert named in refusal(lambda: open_checkpoint(folder), folder, case[:80])


@pytest.mark.parametrize("form", ["ours", "released"])
@pytest.mark.parametrize("case", BUILT_ALONE)
def test_settings_that_transformers_refuses_are_refused_by_name(originals, tmp_path, form, case):
    folder = copied(originals, form, tmp_path)
    named, damage = BUILT_ALONE[case]
    damage(folder)
    assert named in refusal(lambda: build_model(folder), folder, f"{form}, built: {case}")


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_checkpoint_passes_the_same_doors(originals, tmp_path, form):
    folder = copied(originals, form, tmp_path)
    assert run(open_door(form, folder), folder)["kind"] == "nothing"


# ---- scales


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["attention", "an expert"])
def test_a_scale_that_is_no_number_is_refused_though_checksums_are_right(
    originals, tmp_path, where, value
):
    folder = copied(originals, "ours", tmp_path)
    checkpoint = open_checkpoint(folder)
    layer = folder / "layer-00001.safetensors"
    header, data = header_of(layer)
    name, layout, record = (
        "model.layers.1.mlp.experts.gate_up_proj",
        checkpoint.expert_layouts()[1][1],
        1,
    )
    if where == "attention":
        name, record = "model.layers.1.self_attn.k_proj.weight", 0
        layout = checkpoint.attention_layout(name, (32, 64))
    begin, end = header[name]["data_offsets"]
    size = layout.stride if where == "an expert" else end - begin
    content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    bytes_of = content[begin + record * size :][:size]
    matrix = next(iter(layout.tensors(bytes_of).values()))
    matrix.parts["pairs" if where == "an expert" else "scale"].view(-1)[3] = value
    crcs = json.loads(header["__metadata__"]["crc32"])
    crcs[name][record] = f"{zlib.crc32(bytes_of.numpy().tobytes()):08x}"
    header["__metadata__"]["crc32"] = json.dumps(crcs)
    raw = json.dumps(header).encode().ljust(4096 - 8)
    write_header(layer, raw, content.numpy().tobytes())
    message = refusal(
        lambda: build_model(folder, OffloadConfig(offload_per_layer=0)), folder, f"scale: {where}"
    )
    assert "holds a non-finite number" in message
    assert (name if where == "attention" else "expert 1 of layer 1") in message


# ---- tokenizers


def _code(folder: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nEvil = object\n")


TOKENIZERS = {
    "code": b'{"auto_map": {"AutoTokenizer": ["evil.Evil", null]}, "tokenizer_class": "Evil"}',
    "a list": b"[]",
    "nested": b'{"a":' + b"[" * 100_000,
    "nothing": b"",
}


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_hostile_tokenizer_is_refused_and_runs_nothing(originals, tmp_path, case, name):
    folder = copied(originals, "ours", tmp_path)
    _code(folder)
    (folder / name).write_bytes(TOKENIZERS[case])
    message = refusal(lambda: load_tokenizer(folder, str(folder)), folder, f"tokenizer: {case}")
    assert str(folder) in message
    assert not (folder / "ran").exists()


def test_a_tokenizers_file_of_1_gb_is_refused_unread(originals, tmp_path):
    folder = copied(originals, "ours", tmp_path)
    sparse(10**9)(folder / "tokenizer.json")
    assert "tokenizer.json" in refusal(
        lambda: load_tokenizer(folder, "x"), folder, "tokenizer of 1 GB"
    )


# ---- recordings


@pytest.mark.parametrize("case", [*PRETENDERS, *BOMBS, "a pipe", "a device", "a folder", "1 GB"])
def test_a_hostile_recording_is_refused_by_name(tmp_path, case):
    path = tmp_path / "x.trace"
    makers: dict[str, Callable[[Path], object]] = {
        "a pipe": os.mkfifo,
        "a device": lambda p: p.symlink_to("/dev/zero"),
        "a folder": Path.mkdir,
        "1 GB": sparse(10**9),
    }
    raw = PRETENDERS[case] if case in PRETENDERS else BOMBS.get(case, b"")
    if case in BOMBS:
        raw = struct.pack("<Q", len(raw)) + raw
    makers.get(case, lambda p: p.write_bytes(raw))(path)
    assert "x.trace" in refusal(lambda: read_trace(path), tmp_path, f"recording: {case}")


@pytest.mark.parametrize(
    ("name", "shape"),
    [("states.resident", [0, 1 << 62]), ("states.resident", []), ("events.kind", [])],
)
def test_a_recording_with_columns_of_strange_shapes_is_refused_by_name(tmp_path, name, shape):
    size = 0 if 0 in shape else 1
    entry = {"dtype": "BOOL", "shape": shape, "data_offsets": [0, size]}
    meta = {"format": "mixoff trace", "version": "1", "provenance": "{}"}
    raw = json.dumps({"__metadata__": meta, name: entry}).encode()
    path = tmp_path / "x.trace"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(size))
    assert "x.trace" in refusal(lambda: read_trace(path), tmp_path, f"recording: {shape}")


# ---- the command line, and mutations


@pytest.mark.parametrize("case", ["config: nested 100,000 deep", "weights: a pickle"])
def test_the_command_line_refuses_in_one_line(originals, tmp_path, case):
    folder = copied(originals, "ours", tmp_path)
    ALL[case][1](folder)
    done = subprocess.run(
        [sys.executable, "-m", "mixoff", "info", str(folder)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("mixoff: ")
    assert done.stderr.count("\n") == 1


_VALUES = (0, -1, 1, True, None, 1.5, "8", [], {}, [[]], 1 << 62, 1 << 64, "U8", "F32", [0, 8])


def mutated(header: dict[str, Any], rng: random.Random) -> bytes:
    """Return a header with one to three changes: of values, keys, or bytes of its text."""
    header = json.loads(json.dumps(header))
    for _ in range(rng.randint(1, 3)):
        name = rng.choice([*header, "new"])
        entry = header.get(name)
        if isinstance(entry, dict) and entry and rng.random() < 0.8:
            key = rng.choice([*entry])
            if isinstance(entry[key], list) and entry[key] and rng.random() < 0.6:
                entry[key][rng.randrange(len(entry[key]))] = deepcopy(rng.choice(_VALUES))
            else:
                entry[key] = deepcopy(rng.choice(_VALUES))
        else:
            header[name] = deepcopy(rng.choice([*_VALUES, *header.values()]))
    raw = bytearray(json.dumps(header).encode())
    for _ in range(rng.choice([0, 0, 1, 2])):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    return bytes(raw)


def mutate(path: Path, seed: int, count: int) -> int:
    """Read so many mutations of a file, and return how many were refused."""
    rng = random.Random(seed)
    header, data = header_of(path)
    strange, refused = path.with_name("strange.safetensors"), 0
    for _ in range(count):
        raw = mutated(header, rng)
        strange.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
        try:
            found = read_shard(strange)
        except CheckpointError:
            refused += 1
        else:
            assert sum(entry.nbytes for entry in found.tensors.values()) == len(data)
    return refused


def test_mutated_headers_are_refused_or_cover_their_files_bytes(originals, tmp_path):
    folder = copied(originals, "source", tmp_path)
    assert mutate(weights(folder), seed=0, count=3000) > 2000
