"""The reader of torch's files: what torch writes comes back, what would run or fill the memory is refused."""

import io
import pickle
import random
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch

from utils.archive import ContentError, Stub, as_float32, plain_copy, read_archive
from utils.options import InputError

STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ%st"
CANARY = "canary"


def write(path: Path, program: bytes, **records: bytes) -> Path:
    """Write a file of torch.save's form around a hand-made pickle; `records` are its storages."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + program)
        for name, data in records.items():
            archive.writestr(f"archive/data/{name}", data)
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def storage(count: int) -> bytes:
    return STORAGE % struct.pack("<i", count) + b"Q"


def peak_of_refusal(path: Path) -> tuple[str, int]:
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            read_archive(path)
        return str(caught.value), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def test_what_torch_writes_comes_back_as_weights_only_reads_it(tmp_path):
    base = torch.arange(24.0)
    content = {
        "values": [
            None,
            True,
            False,
            0,
            255,
            70000,
            -5,
            2**40,
            -(2**130),
            1.5,
            float("inf"),
            "naïve",
            (),
            (1, 2, 3, 4),
        ],
        1: {"deep": [[[{}]]]},
        "types": [torch.ones(2, 3).to(dtype) for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64)],
        "small": [torch.ones(3).to(dtype) for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)],
        "views": [base[3:9], base.view(4, 6).t(), torch.zeros(0, 4), torch.tensor(3.0)],
        "layout": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "state": torch.nn.Conv2d(2, 3, 1).state_dict(),
        "size": torch.Size([1, 2]),
    }
    torch.save(content, tmp_path / "x.pt")
    read = read_archive(tmp_path / "x.pt")
    expected = torch.load(tmp_path / "x.pt", weights_only=True)
    assert equal(read, expected | {"state": dict(expected["state"]), "size": (1, 2)})
    shared = read["views"]
    assert shared[0].untyped_storage().data_ptr() == shared[1].untyped_storage().data_ptr()


def test_parameters_and_inert_objects(tmp_path):
    torch.save({"p": torch.nn.Parameter(torch.ones(2)), "path": Path("a/b")}, tmp_path / "x.pt")
    read = read_archive(tmp_path / "x.pt", inert=["pathlib.PosixPath", "pathlib._local.PosixPath"])
    assert type(read["p"]) is torch.Tensor
    assert type(read["path"]) is Stub
    with pytest.raises(InputError, match=r"asks for 'pathlib.*PosixPath', which is not on the list"):
        read_archive(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        ("os system", text(f"touch {CANARY}")),
        ("posix system", text(f"touch {CANARY}")),
        ("subprocess check_output", text(f"touch {CANARY}")),
        ("__builtin__ eval", text(f"open('{CANARY}', 'w')")),
        ("builtins exec", text(f"open('{CANARY}', 'w')")),
        ("io open", text(CANARY) + text("w") + b"\x86"),
        ("__builtin__ getattr", text("os") + text("system") + b"\x86"),
        ("operator attrgetter", text("system")),
        ("torch load", text(CANARY)),
        ("torch.serialization load", text(CANARY)),
        ("torch.hub load", text(CANARY)),
        ("_pickle loads", text("x")),
        ("numpy load", text(CANARY)),
        ("models.common Conv", text("x")),
        ("torch Tensor", b"\x8a\x06\x00\x00\x00\x00\x00\x01"),
        ("__builtin__ bytearray", b"\x8a\x06\x00\x00\x00\x00\x00\x01"),
    ],
)
@pytest.mark.parametrize(
    "frame", [b"%s.", b"}(X\x03\x00\x00\x00ema](%seu.", b"ccollections\nOrderedDict\n)R}K\x01%ssb."]
)
def test_a_call_is_refused_by_name_and_never_made(tmp_path, monkeypatch, function, argument, frame):
    monkeypatch.chdir(tmp_path)
    call = (
        b"c" + function.replace(" ", "\n").encode() + b"\n" + argument + (b"" if argument[-1:] == b"\x86" else b"\x85")
    )
    path = write(tmp_path / "evil.pt", frame % (call + b"R"))
    with pytest.raises(InputError) as caught:
        read_archive(path)
    name = function.replace(" ", ".")
    assert str(caught.value).startswith(f"{path}: asks for '{name}', which is not on the list")
    assert not Path(CANARY).exists()


def test_the_canary_would_have_been_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(b"\x80\x02cos\nsystem\n" + text(f"touch {CANARY}") + b"\x85R.")
    assert Path(CANARY).exists()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (b"ccollections\nOrderedDict\nK\x05\x85R.", "OrderedDict with arguments"),
        (b"ctorch\nFloatStorage\nJ\x00\x00\x00\x7f\x85R.", "call of a storage type"),
        (b"}N\x85R.", "a call of what is no name"),
        (b"]N\x81.", "a call of what is no name"),
        (b"]}b.", "state for what has none"),
        (b"}K\x01a.", "items for what is no list"),
        (b"]K\x01K\x02s.", "keys for what is no dict"),
        (b"})K\x01s.", "keys that are neither"),
        (b"}(K\x01u.", "keys for what is no dict"),
        (b"K\x01Q.", "unknown reference"),
        (b"\x86.", "too few values"),
        (b".", "damaged"),
        (b"h\x05.", "damaged"),
        (b"K\x01", "damaged"),
        (b"t.", "damaged"),
        (b"K\x012.", "instruction DUP"),
        (b"\x8c\x02os\x8c\x06system\x93.", "instruction SHORT_BINUNICODE"),
        (b"i" + b"os\nsystem\n.", "instruction INST"),
        (b"cos\x1b[31m\nsystem\n.", r"'os\\x1b\[31m.system'"),
        (b"c" + b"a" * 5000 + b"\nb\n.", "not on the list"),
        (b"X\xff\xff\xff\xffabc.", "damaged"),
        (b"\xff", "damaged"),
        (storage(2) + b".", "a storage of 2 elements in 4 bytes"),
        (STORAGE % struct.pack("<i", -1) + b"Q.", "a storage of -1 elements"),
    ],
)
def test_a_malformed_program_is_one_line(tmp_path, program, reason):
    with pytest.raises(InputError, match=reason) as caught:
        read_archive(write(tmp_path / "x.pt", program, **{"0": b"\0" * 4}))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def tensor(size: bytes, stride: bytes, offset: int = 0) -> bytes:
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n("
    return rebuild + storage(1) + b"K" + bytes([offset]) + size + stride + b"\x89}tR."


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        (b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85", b"K\x00\x85", 0),  # a view of one element, 10**12 times
        (b"K\x01\x85", b"K\x01\x85", 1),
        (b"J\xff\xff\xff\xff\x85", b"K\x01\x85", 0),
        (b"K\x02\x85", b"K\x01\x85", 0),
        (b"K\x01\x85", b")", 0),
        (b"N", b")", 0),
        (text("a") + b"\x85", b"K\x01\x85", 0),
    ],
)
def test_a_tensor_beyond_its_storage_is_refused(tmp_path, size, stride, offset):
    with pytest.raises(InputError, match="damaged"):
        read_archive(write(tmp_path / "x.pt", tensor(size, stride, offset), **{"0": b"\0" * 4}))


@pytest.mark.parametrize(
    "program",
    [
        b"K\x01r\xff\xff\xff\xff0",  # an index that makes C's unpickler reserve 64 GB
        b"X\xff\xff\xff\x7f" + b"a" * 100,
        b"c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x7f\x85R.",
        storage(2**31 - 1) + b".",
        b"\x8b\xff\xff\xff\x7f.",
    ],
)
def test_memory_stays_bounded_by_the_file(tmp_path, program):
    message, peak = peak_of_refusal(write(tmp_path / "x.pt", program, **{"0": b"\0" * 4}))
    assert peak < 4 << 20, message


def test_a_zip_bomb_is_refused_unopened(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(50 << 20))
    message, peak = peak_of_refusal(tmp_path / "x.pt")
    assert "compressed" in message
    assert peak < 4 << 20


def test_sizes_beyond_the_file_are_refused(tmp_path):
    path = write(tmp_path / "x.pt", b"}.", **{"0": b"abcd"})
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(data)
    message, peak = peak_of_refusal(path)
    assert "claim more bytes than the file has" in message
    assert peak < 4 << 20


def test_a_program_is_no_larger_than_two_mebibytes(tmp_path):
    with pytest.raises(InputError, match="larger than 2 MiB"):
        read_archive(write(tmp_path / "x.pt", b"0" * (2 << 20) + b"."))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no checkpoint"),
        (b"GIF89a", "no checkpoint"),
        (pickle.dumps({}), "before torch 1.6"),
        (b"PK\x03\x04" + bytes(100), "truncated"),
    ],
)
def test_other_files_are_told_apart(tmp_path, content, reason):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(InputError, match=f"x.pt: .*{reason}"):
        read_archive(tmp_path / "x.pt")


def test_missing_legacy_script_and_foreign_zip(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_archive(tmp_path / "none.pt")
    with pytest.raises(InputError, match="no such file"):
        read_archive(tmp_path)
    torch.save({}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"before torch 1\.6"):
        read_archive(tmp_path / "old.pt")
    with zipfile.ZipFile(tmp_path / "docs.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(InputError, match=r"expected one data\.pkl"):
        read_archive(tmp_path / "docs.zip")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("m/data.pkl", "")
        archive.writestr("m/constants.pkl", "")
    with pytest.raises(InputError, match="TorchScript"):
        read_archive(tmp_path / "script.pt")


def test_every_truncation_is_one_line(tmp_path):
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(100)}, buffer)
    whole = buffer.getvalue()
    rng = random.Random(0)
    for length in [0, 1, 3, 4, len(whole) - 1, *rng.sample(range(len(whole)), 60)]:
        (tmp_path / "x.pt").write_bytes(whole[:length])
        with pytest.raises(InputError) as caught:
            read_archive(tmp_path / "x.pt")
        assert "\n" not in str(caught.value)


def test_plain_copy_refuses_objects_cycles_and_shared_depth():
    assert plain_copy({"a": [1, (2.0, None)], 3: "x"}, "here") == {"a": [1, (2.0, None)], 3: "x"}
    with pytest.raises(ContentError, match=r"here\['a'\]\[1\]: expected plain values, found Tensor"):
        plain_copy({"a": [0, torch.ones(1)]}, "here")
    with pytest.raises(ContentError, match=r"found 'models\.common\.Conv'"):
        plain_copy([Stub("models.common.Conv", ())], "here", tensors=True)
    with pytest.raises(ContentError, match="found tuple"):
        plain_copy({(1, 2): 3}, "here")
    cycle: list = []
    cycle.append(cycle)
    with pytest.raises(ContentError, match="nested without end"):
        plain_copy(cycle, "here")
    shared: list = []
    for _ in range(30):
        shared = [shared, shared]  # 2**30 values in a copy
    with pytest.raises(ContentError, match="nested without end"):
        plain_copy(shared, "here")


def test_as_float32_is_bounded():
    tensors = {"a": torch.ones(3, dtype=torch.float16), "b": torch.tensor(2)}
    assert {key: value.dtype for key, value in as_float32(tensors, 4).items()} == {"a": torch.float32, "b": torch.int64}
    with pytest.raises(ContentError, match="more elements"):
        as_float32(dict.fromkeys("abcde", torch.ones(1)), 4)
