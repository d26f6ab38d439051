"""Files of `torch.save` read without running what is in them, in memory bounded by the file's size.

A pickle is a program, and every loader that executes it has been abused. Here its few harmless instructions are
carried out by a small machine of our own, in which a name stands for one of the builders below or for an inert record
(`Stub`), and for nothing else. That is stricter than `torch.load(weights_only=True)`, which lets a file call
`bytearray(10**12)` and runs the `__setstate__` of each class that it is told to allow.
"""

import itertools
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.options import InputError

MAX_PROGRAM = 2 << 20  # bytes of data.pkl; YOLOv5x needs a tenth, and a byte may make a hundred in memory
MAX_NODES = 200_000  # values visited in a copy: shared references can make a small file endless
MAX_DEPTH = 32
STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
_DAMAGE = (  # what zipfile, pickletools and the stack machine raise on bytes that are not what they claim
    zipfile.BadZipFile,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
)


class ContentError(Exception):
    """Why a file's content is not accepted; the reader of the file adds the path."""


@dataclass(eq=False)
class Stub:
    """An object of the file as data: its class by name, its arguments and its attributes. It has no behaviour."""

    name: str
    arguments: tuple[Any, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Global:
    """A name that a file refers to, and what is made when the file calls it."""

    name: str
    build: Callable[[tuple[Any, ...]], Any]


def read_archive(path: Path, *, inert: Collection[str] = ()) -> Any:
    """Read the object in a file of `torch.save`: plain values and tensors, on the CPU.

    Objects of the classes named in `inert` (`module.Class`) come as stubs; any other name is refused.

    Raises:
        InputError: the file is missing, truncated, damaged, in another format, or asks for another name.
    """
    try:
        _check_start(path)
        with zipfile.ZipFile(path) as archive:
            records = _records(archive, path.stat().st_size)
            machine = _Machine(inert, partial(_storage, archive, records, {}))
            return machine.run(archive.read(records["data.pkl"]))
    except ContentError as error:
        raise InputError(f"{path}: {error}") from None
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: truncated, damaged or unreadable: {reason:.200}") from error


def plain_copy(value: Any, place: str, *, tensors: bool = False) -> Any:
    """Copy nested dicts, lists and tuples of None, bool, int, float, str (and, where allowed, tensors, detached).

    Raises:
        ContentError: something else is in there, named with its place, or it is nested without end.
    """
    return _plain(value, (place,), itertools.count(), tensors=tensors)


def _plain(value: Any, place: tuple[Any, ...], count: Iterator[int], *, tensors: bool) -> Any:
    if len(place) > MAX_DEPTH or next(count) > MAX_NODES:
        raise ContentError(f"{_spell(place)}: nested without end")
    if isinstance(value, dict):
        if wrong := [key for key in value if type(key) not in (str, int)]:
            raise ContentError(f"{_spell(place)}: expected text or whole numbers as keys, found {_kind(wrong[0])}")
        return {key: _plain(item, (*place, key), count, tensors=tensors) for key, item in value.items()}
    if type(value) in (list, tuple):
        items = [_plain(item, (*place, index), count, tensors=tensors) for index, item in enumerate(value)]
        return type(value)(items)
    if value is None or type(value) in (bool, int, float, str):
        return value
    if tensors and type(value) in (Tensor, torch.nn.Parameter) and value.dtype in STORAGES.values():
        return value.detach()
    raise ContentError(
        f"{_spell(place)}: expected plain values{' or tensors' if tensors else ''}, found {_kind(value)}"
    )


def _spell(place: tuple[Any, ...]) -> str:
    return place[0] + "".join(f"[{key!r:.40}]" for key in place[1:6])


def _kind(value: Any) -> str:
    return f"'{value.name}'" if isinstance(value, Stub | Global) else type(value).__name__


def as_float32(tensors: Mapping[str, Tensor], limit: int) -> dict[str, Tensor]:
    """Return the tensors with floats as float32.

    Raises:
        ContentError: they have more than `limit` elements together, as only many views of one storage have.
    """
    if sum(tensor.numel() for tensor in tensors.values()) > limit:
        raise ContentError("its tensors have more elements than the file has bytes")
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}


# --- the zip file -----------------------------------------------------------------------------------------------------


def _check_start(path: Path) -> None:
    if not path.is_file():
        raise ContentError("no such file")
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(b"\x80"):
        raise ContentError("a pickle in the form before torch 1.6, which is not read; save it anew with a later torch")
    if start != b"PK\x03\x04":
        raise ContentError("no checkpoint: expected a file of torch.save")


def _records(archive: zipfile.ZipFile, limit: int) -> dict[str, zipfile.ZipInfo]:
    """The archive's entries by their name below its top folder; all stored as they are, so that no size can lie."""
    entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size for entry in entries):
        raise ContentError("no checkpoint: torch.save does not compress, this file is compressed")
    if sum(entry.file_size for entry in entries) > limit:
        raise ContentError("damaged: its records claim more bytes than the file has")
    records = {entry.filename.partition("/")[2]: entry for entry in entries}
    if len(records) != len(entries) or "data.pkl" not in records:
        raise ContentError("no checkpoint: expected one data.pkl, as torch.save writes it")
    if "constants.pkl" in records:
        raise ContentError("a TorchScript export; expected a checkpoint")
    if records["data.pkl"].file_size > MAX_PROGRAM:
        raise ContentError(f"its data.pkl is larger than {MAX_PROGRAM >> 20} MiB")
    if "byteorder" in records and archive.read(records["byteorder"]) != b"little":
        raise ContentError("expected numbers in little-endian order")
    return records


def _storage(
    archive: zipfile.ZipFile, records: Mapping[str, zipfile.ZipInfo], loaded: dict[str, Tensor], identity: Any
) -> Tensor:
    """The storage that a persistent id names, as a flat tensor; loaded once, however many tensors share it."""
    _expect(isinstance(identity, tuple) and len(identity) == 5 and identity[0] == "storage", "an unknown reference")
    _, kind, key, _, count = identity
    _expect(isinstance(kind, Global) and kind.name in STORAGES, "a storage of unknown type")
    _expect(type(key) is str and type(count) is int, "a storage without name or size")
    record, dtype = records[f"data/{key}"], STORAGES[kind.name]
    _expect(key not in loaded or loaded[key].dtype == dtype, "a storage of two types")
    _expect(count * dtype.itemsize == record.file_size, f"a storage of {count} elements in {record.file_size} bytes")
    if key not in loaded:
        data = bytearray(archive.read(record))  # which checks the CRC
        loaded[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return loaded[key]


# --- the pickle -------------------------------------------------------------------------------------------------------


class _Machine:
    """Pickle's stack machine, cut down to the instructions that torch.save writes (protocol 2)."""

    def __init__(self, inert: Collection[str], storage: Callable[[Any], Tensor]) -> None:
        self._inert = inert
        self._storage = storage
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []  # the stacks below each open mark
        self._memo: dict[int, Any] = {}
        literals = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE")
        self._steps: dict[str, Callable[[Any], None]] = dict.fromkeys(literals, self._push) | {
            "PROTO": lambda _: None,
            "NONE": lambda _: self._push(None),
            "NEWTRUE": lambda _: self._push(True),
            "NEWFALSE": lambda _: self._push(False),
            "EMPTY_DICT": lambda _: self._push({}),
            "EMPTY_LIST": lambda _: self._push([]),
            "EMPTY_TUPLE": lambda _: self._push(()),
            "MARK": self._mark,
            "TUPLE": lambda _: self._push(tuple(self._pop_marked())),
            "TUPLE1": lambda _: self._push(tuple(self._pop(1))),
            "TUPLE2": lambda _: self._push(tuple(self._pop(2))),
            "TUPLE3": lambda _: self._push(tuple(self._pop(3))),
            "APPEND": lambda _: self._extend(self._pop(1)),
            "APPENDS": lambda _: self._extend(self._pop_marked()),
            "SETITEM": lambda _: self._update(self._pop(2)),
            "SETITEMS": lambda _: self._update(self._pop_marked()),
            "GLOBAL": self._global,
            "NEWOBJ": lambda _: self._call(*self._pop(2)),
            "REDUCE": lambda _: self._call(*self._pop(2)),
            "BUILD": lambda _: self._build(*self._pop(1)),
            "BINPERSID": lambda _: self._push(self._storage(*self._pop(1))),
            "BINPUT": self._remember,
            "LONG_BINPUT": self._remember,
            "BINGET": lambda index: self._push(self._memo[index]),
            "LONG_BINGET": lambda index: self._push(self._memo[index]),
        }

    def run(self, program: bytes) -> Any:
        """Carry out the pickle and return the object it describes."""
        for instruction, argument, _ in pickletools.genops(program):
            if instruction.name == "STOP":
                break
            _expect(instruction.name in self._steps, f"the instruction {instruction.name}, which torch.save avoids")
            self._steps[instruction.name](argument)
        return self._stack.pop()

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self, count: int) -> list[Any]:
        _expect(len(self._stack) >= count, "too few values")
        values = self._stack[-count:]
        del self._stack[-count:]
        return values

    def _mark(self, _: Any) -> None:
        self._outer.append(self._stack)
        self._stack = []

    def _pop_marked(self) -> list[Any]:
        values, self._stack = self._stack, self._outer.pop()
        return values

    def _remember(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _extend(self, values: list[Any]) -> None:
        _expect(type(self._stack[-1]) is list, "items for what is no list")
        self._stack[-1].extend(values)

    def _update(self, values: list[Any]) -> None:
        keys = values[::2]
        _expect(type(self._stack[-1]) is dict and len(values) % 2 == 0, "keys for what is no dict")
        _expect(all(type(key) in (str, int) for key in keys), "keys that are neither text nor whole numbers")
        self._stack[-1].update(zip(keys, values[1::2], strict=True))

    def _global(self, name: str) -> None:
        name = name.replace(" ", ".")
        if name in STORAGES:
            self._push(Global(name, _uncallable))
        elif name in _BUILDERS:
            self._push(Global(name, _BUILDERS[name]))
        elif name in self._inert:
            self._push(Global(name, partial(Stub, name)))
        else:
            raise ContentError(f"asks for {name!r:.80}, which is not on the list of harmless names; nothing was run")

    def _call(self, target: Any, arguments: Any) -> None:
        _expect(isinstance(target, Global) and type(arguments) is tuple, "a call of what is no name")
        self._push(target.build(arguments))

    def _build(self, state: Any) -> None:
        target = self._stack[-1]
        _expect(isinstance(target, Stub | dict), "a state for what has none")
        if isinstance(target, Stub) and type(state) is dict:
            target.attributes = state  # no copy, which a file could ask for without end


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise ContentError(f"damaged: its pickle has {what}")


def _uncallable(_: tuple[Any, ...]) -> Any:
    raise ContentError("damaged: its pickle has a call of a storage type")


def _tensor(arguments: tuple[Any, ...]) -> Tensor:
    """A tensor within its flat storage, from storage, offset, size, stride, and things of no use here."""
    _expect(len(arguments) >= 4 and type(arguments[0]) is Tensor, "a tensor without storage")
    storage, offset, size, stride = arguments[:4]
    _expect(type(size) is tuple and type(stride) is tuple and len(size) == len(stride) <= 8, "a tensor without shape")
    _expect(all(type(n) is int and 0 <= n < 2**40 for n in (offset, *size, *stride)), "a tensor of impossible shape")
    count = math.prod(size)
    if not count:
        return storage.new_empty(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    _expect(count <= storage.numel() and last < storage.numel(), "a tensor larger than its storage")
    return storage.as_strided(size, stride, offset)


def _parameter(arguments: tuple[Any, ...]) -> Tensor:
    _expect(len(arguments) == 3 and type(arguments[0]) is Tensor, "a parameter without tensor")
    tensor: Tensor = arguments[0]
    return tensor


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    _expect(arguments == (), "an OrderedDict with arguments")
    return {}


def _size(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    sizes = arguments[0] if len(arguments) == 1 else None
    _expect(type(sizes) is tuple, "a Size without numbers")
    return sizes or ()


_BUILDERS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _size,
    "collections.OrderedDict": _ordered_dict,
}
