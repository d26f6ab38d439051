"""Command lines and YAML files read into dataclasses: a field is a flag (or a key), its type, its default and its help.

One mechanism serves the scripts' options and the recipes, so that an unknown or ill-typed entry is always told the
same way: one line that names the source, the key and what was expected.
"""

import argparse
import dataclasses
import difflib
import errno
import math
import reprlib
import signal
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

ROOT = Path(__file__).resolve().parents[1]  # the project's folder
T = TypeVar("T")
_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxother = 2, 120, 120
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


class InputError(ValueError):
    """A mistake in what the user gave (a flag, a file, a YAML); scripts print it in one line and exit with 2."""


def option(
    default: Any,
    text: str,
    *,
    aliases: Sequence[str] = (),
    choices: Sequence[Any] | None = None,
    bare: Any = None,
    positional: bool = False,
    least: float = -math.inf,
    most: float = math.inf,
) -> Any:
    """Declare a dataclass field that is a command-line flag.

    Args:
        default: value when the flag is absent; a list makes a flag that takes one or more values.
        text: the help.
        aliases: further spellings, with their dashes.
        choices: the values allowed.
        bare: value when the flag stands without an argument (`--cache` for `--cache ram`).
        positional: given by its place, without a flag's name, and never left out.
        least: smallest number allowed.
        most: largest number allowed.
    """
    metadata = {"help": text, "aliases": tuple(aliases), "choices": choices, "bare": bare, "range": (least, most)}
    metadata["positional"] = positional
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_ranges(options: Any) -> None:
    """Refuse an options object in which a number is out of the range that its `option` declares.

    Raises:
        InputError: it names the flag.
    """
    for field in dataclasses.fields(options):
        least, most = field.metadata["range"]
        given = getattr(options, field.name)
        for value in given if isinstance(given, list) else [given]:
            if isinstance(value, int | float) and not least <= value <= most:
                limits = f"at least {least:g}" if most == math.inf else f"{least:g} to {most:g}"
                raise InputError(f"--{field.name.replace('_', '-')} {value}: expected {limits}")


class Ranged:
    """Base of a script's options: refuses numbers out of their range, from the command line and from Python alike.

    `given` are the names of those that were not left to their defaults.
    """

    given: frozenset[str]

    def __new__(cls, *_: Any, **given: Any) -> "Ranged":
        """Note the names."""
        options = super().__new__(cls)
        options.given = frozenset(given)
        return options

    def __post_init__(self) -> None:
        check_ranges(self)


def parse(cls: type[T], arguments: Sequence[str] | None = None, description: str | None = None) -> T:
    """Read a command line into the options dataclass `cls`; argparse prints usage and exits with 2 on a mistake."""
    parser = argparse.ArgumentParser(
        description=description or cls.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        _add_flag(parser, field, hints[field.name])
    absent = object()
    fields = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    found = parser.parse_args(arguments, argparse.Namespace(**dict.fromkeys(fields, absent)))
    return cls(**{name: value for name, value in vars(found).items() if value is not absent})


def _add_flag(parser: argparse.ArgumentParser, field: "dataclasses.Field[Any]", hint: Any) -> None:
    if field.metadata["positional"]:
        parser.add_argument(field.name, type=hint, help=field.metadata["help"])
        return
    names = ["--" + field.name.replace("_", "-"), *field.metadata["aliases"]]
    if "_" in field.name:
        names.append("--" + field.name)  # YOLOv5 spells some flags with underscores
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    settings: dict[str, Any] = {"dest": field.name, "default": default, "help": field.metadata["help"]}
    if hint is bool:
        toggles = argparse.BooleanOptionalAction if default else "store_true"
        parser.add_argument(*names, action=toggles, **settings)
        return
    base, many = _element_type(hint)
    settings["type"] = base
    settings["choices"] = field.metadata["choices"]
    if many:
        settings["nargs"] = "+"
    elif field.metadata["bare"] is not None:
        settings |= {"nargs": "?", "const": field.metadata["bare"]}
    parser.add_argument(*names, **settings)


def _element_type(hint: Any) -> tuple[Any, bool]:
    """The type of one value behind `hint`, and whether the flag takes several."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(arg for arg in get_args(hint) if arg is not type(None))
    if get_origin(hint) is list:
        return get_args(hint)[0], True
    return hint, False


def read_yaml(path: Path) -> dict[str, Any]:
    """Parse a YAML mapping of plain values; nothing in the file is executed.

    Raises:
        InputError: the file is missing, is no YAML, or is not a mapping.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping of keys to values, found {type(content).__name__}")
    return content


def brief(value: Any) -> str:
    """A value as messages show it: cut short, since a few aliases in a YAML stand for millions of entries."""
    return _BRIEF.repr(value)


def find_yaml(name: str | Path, *folders: str) -> Path:
    """Locate a YAML as given, or in the project's `folders` (so `yolov5-spd-n.yaml` finds `models/yolov5-spd-n.yaml`).

    Raises:
        InputError: it is in none of them; the message lists the places.
    """
    places = list(dict.fromkeys((Path(name), *(ROOT / folder / name for folder in ("", *folders)))))
    for place in places:
        if place.is_file():
            return place
    raise InputError(f"{name}: no such file; looked for {', '.join(str(place) for place in places)}")


def from_mapping(cls: type[T], values: Mapping[str, Any], source: str) -> T:
    """Build the dataclass `cls` from a mapping whose keys are its fields; absent keys keep their defaults.

    Raises:
        InputError: a key is unknown or a value has another type than its field.
    """
    hints = get_type_hints(cls)
    refuse_unknown(values, hints, source)
    return cls(**{key: _checked(value, hints[key], f"{source}: {key}") for key, value in values.items()})


def refuse_unknown(given: Iterable[Any], known: Iterable[str], source: str) -> None:
    """Raise an InputError that names the first key of `given` not in `known` and the nearest known ones."""
    known = list(known)
    for key in given:
        if key not in known:
            text = key if isinstance(key, str) else brief(key)
            near = difflib.get_close_matches(text, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known keys: {', '.join(known)}"
            raise InputError(f"{source}: unknown key '{text}'; {hint}")


def _checked(value: Any, hint: Any, place: str) -> Any:
    allowed = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for kind in allowed:
        kind = get_origin(kind) or kind  # noqa: PLW2901
        if isinstance(value, bool) and kind is not bool:
            continue
        if isinstance(value, kind):
            return value
        if kind is float and isinstance(value, int):
            return float(value)
        if kind is float and isinstance(value, str):  # YAML 1.1 reads 1e-4 (no dot) as text
            try:
                return float(value)
            except ValueError:
                continue
    names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in allowed)
    raise InputError(f"{place}: expected {names}, found {brief(value)}")


class Interrupted(KeyboardInterrupt):
    """The user or the system asked the program to end, by a signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def run_script(main: Callable[[Any], object], options: type[Any], description: str) -> None:
    """Parse the command line and call `main`; a user's mistake becomes one line on stderr and exit status 2.

    So does a disk that is full or may not be written to. A signal ends with 128 and its number, as the shell expects.
    """
    try:
        main(parse(options, description=description))
    except InputError as error:
        _end(f"error: {error}", 2)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        _end(f"error: {error.filename or 'a file'}: could not be written: {error.strerror}", 2)
    except KeyboardInterrupt as error:
        _end("interrupted", 128 + (error.signum if isinstance(error, Interrupted) else signal.SIGINT))


def _end(line: str, status: int) -> NoReturn:
    sys.stderr.write(f"{line}\n")
    sys.exit(status)
