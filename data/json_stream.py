"""A json file read piece by piece, for files that would take many times their size in memory if read at once.

Values are decoded by the standard library; only the outermost object and the arrays in it are gone through here.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from utils.options import InputError

CHUNK = 1 << 22  # characters read at a time
_LONGEST = 16  # characters of a number's end, a constant or an escape that the end of what is read can cut
_SPACE = re.compile(r"[ \t\n\r]*")


def read_members(path: Path, *, expected: str = "keys and values", chunk: int = CHUNK) -> Iterator[tuple[str, Any]]:
    """Give the keys and values of the object in a json file; an array comes as an iterator over its entries.

    What is left of an array when the next member is asked for is read and dropped. `expected` is told where there is no
    object.

    Raises:
        InputError: the file cannot be read or is no json, there is no object in it, or a key of it is given twice.
    """
    try:
        with path.open("rb") as file:
            encoding = json.detect_encoding(file.read(4))
        with path.open(encoding=encoding, errors="surrogatepass", newline="") as text:
            yield from _Scanner(path, text, chunk).members(expected)
    except OSError as error:
        raise InputError(f"{path}: not a valid json: {error.strerror}") from error


class _Scanner:
    """A place in a text of which only a part is in memory."""

    def __init__(self, path: Path, file: TextIO, chunk: int) -> None:
        self.path = path
        self.file = file
        self.chunk = chunk
        self.decode = json.JSONDecoder().raw_decode
        self.text = ""
        self.position = 0  # in the text
        self.dropped = 0  # characters before the text
        self.lines = 0  # line ends in them
        self.line_start = 0  # characters before the line in which the text begins

    def members(self, expected: str) -> Iterator[tuple[str, Any]]:
        if self.next_character() != "{":
            found = type(self.value()).__name__
            self.end()
            raise InputError(f"{self.path}: expected {expected}, found a {found}")
        keys: set[str] = set()
        for _ in self.items("}"):
            if self.next_character() != '"':
                raise self.fault("Expecting property name enclosed in double quotes", self.position)
            key = self.value()
            if key in keys:
                raise InputError(f"{self.path}: the key {key} is given twice")
            keys.add(key)
            if self.next_character() != ":":
                raise self.fault("Expecting ':' delimiter", self.position)
            self.position += 1
            if self.next_character() == "[":
                entries = (self.value() for _ in self.items("]"))
                yield key, entries
                for _ in entries:
                    pass
            else:
                yield key, self.value()
        self.end()

    def items(self, closing: str) -> Iterator[None]:
        """Stop at each item of an object or array, from its opening to its `closing` bracket."""
        self.position += 1
        if self.next_character() == closing:
            self.position += 1
            return
        while True:
            yield
            following = self.next_character()
            if following not in (",", closing):
                raise self.fault("Expecting ',' delimiter", self.position)
            self.position += 1
            if following == closing:
                return

    def value(self) -> Any:
        """Decode the value that comes next."""
        self.next_character()
        while True:
            try:
                value, end = self.decode(self.text, self.position)
            except json.JSONDecodeError as error:
                if self.is_cut(error.pos) and self.refill():
                    continue
                raise self.fault(error.msg, error.pos) from None
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
                raise self.fault(str(error), self.position) from None
            if end + _LONGEST < len(self.text) or not self.refill():
                self.position = end
                return value

    def is_cut(self, position: int) -> bool:
        """Whether what is wrong at a position may be that the text ends: near the end, or in a string begun there."""
        return position + _LONGEST >= len(self.text) or self.text[position] == '"'

    def next_character(self) -> str:
        """Skip white space; returns the character that follows, nothing at the file's end."""
        while True:
            self.position = _SPACE.match(self.text, self.position).end()  # type: ignore[union-attr]
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.refill():
                return ""

    def end(self) -> None:
        """Hold that nothing follows."""
        if self.next_character():
            raise self.fault("Extra data", self.position)

    def refill(self) -> bool:
        """Drop what lies behind and read on, at least as much as is kept; whether there was more."""
        try:
            more = self.file.read(max(self.chunk, len(self.text) - self.position))
        except UnicodeDecodeError as error:
            place = f"after character {self.dropped + len(self.text)}"
            raise InputError(f"{self.path}: not a valid json: {place}: not {error.encoding}: {error.reason}") from None
        if more:
            self.lines, self.line_start = self.place(self.position)
            self.dropped += self.position
            self.text = self.text[self.position :] + more
            self.position = 0
        return bool(more)

    def place(self, position: int) -> tuple[int, int]:
        """Line ends before a position, and characters before its line."""
        newline = self.text.rfind("\n", 0, position)
        start = self.line_start if newline < 0 else self.dropped + newline + 1
        return self.lines + self.text.count("\n", 0, position), start

    def fault(self, what: str, position: int) -> InputError:
        lines, line_start = self.place(position)
        character = self.dropped + position
        place = f"line {lines + 1} column {character - line_start + 1} (char {character})"
        return InputError(f"{self.path}: not a valid json: {what}: {place}")
