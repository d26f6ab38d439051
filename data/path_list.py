"""Paths in one buffer, which processes started by a fork share.

A list of Path objects is many times as large, and each worker gets its own copy of it, since counting the references
to an object writes to its memory.
"""

import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np


class PathList(Sequence[Path]):
    """An immutable sequence of paths, made anew from their text each time they are asked for."""

    def __init__(self, paths: Iterable[str | Path] = ()) -> None:
        self._set(b"".join(os.fsencode(path) + b"\0" for path in paths))

    def _set(self, buffer: bytes) -> None:
        self.buffer = buffer  # each path's text and a zero
        ends = np.flatnonzero(np.frombuffer(buffer, np.uint8) == 0) + 1 if buffer else np.zeros(0, np.int64)
        self._bounds = np.concatenate([np.zeros(1, np.int64), ends])

    @classmethod
    def from_buffer(cls, buffer: bytes) -> "PathList":
        """The paths whose `buffer` this was."""
        made = cls()
        made._set(buffer)
        return made

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> "PathList": ...
    def __getitem__(self, index: int | slice) -> "Path | PathList":
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        return Path(os.fsdecode(self._text(range(len(self))[operator.index(index)])))

    def __iter__(self) -> Iterator[Path]:
        return map(Path, self.texts())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PathList):
            return self.buffer == other.buffer
        return list(self) == other if isinstance(other, list) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"PathList({list(self)})"

    def texts(self) -> list[str]:
        """The paths as text."""
        return os.fsdecode(self.buffer).split("\0")[:-1]

    def take(self, indices: Iterable[int]) -> "PathList":
        """The paths at `indices` (none negative), in that order."""
        return self.from_buffer(b"".join(self._text(index) + b"\0" for index in indices))

    def _text(self, index: int) -> bytes:
        return self.buffer[self._bounds[index] : self._bounds[index + 1] - 1]
