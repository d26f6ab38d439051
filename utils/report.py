"""What a run tells: the console table, results.csv, metrics.json, tables, settings and TensorBoard events.

The only module that uses TensorBoard.
"""

import csv
import io
import itertools
import json
import math
import platform
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from torch import Tensor, nn

from data.images import read_image, swap_red_and_blue
from utils.areas import COCO_BANDS
from utils.options import InputError

METRICS = ("P", "R", "AP50", "AP75", "AP")  # columns of the console table, before those by size
BANDS = tuple(f"AP_{name}" for name in COCO_BANDS)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file as `write_bytes_atomically` does, in UTF-8, with the line ends that the text has."""
    write_bytes_atomically(path, text.encode("utf-8"))


def write_bytes_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file under a temporary name and rename it, so that no reader meets a half of it.

    Raises:
        InputError: the file cannot be written (a full disk, a folder that is missing or read-only).
    """
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(f"{path}: could not be written: {error.strerror}") from error


def unique_stems(paths: Iterable[Path], taken: Iterable[str] = ()) -> list[str]:
    """Names for the results of files: each file's own without suffix, numbered where it is `taken` already."""
    taken = set(taken)
    stems = []
    for path in paths:
        tries = (path.stem if number == 1 else f"{path.stem}_{number}" for number in itertools.count(1))
        stems.append(next(stem for stem in tries if stem not in taken))
        taken.add(stems[-1])
    return stems


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    packages = ("torchvision", "ultralytics", "faster-coco-eval", "pycocotools")
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        **{name: metadata.version(name) for name in packages},
    }


def folder_names(names: Sequence[str]) -> list[str]:
    """Class names made fit for folders: they come out of checkpoints, and must not lead elsewhere."""
    safe = (re.sub(r'[\x00-\x1f/\\:*?"<>|]', "_", name).strip(". ")[:100] for name in names)
    return [name or str(label) for label, name in enumerate(safe)]


class JsonList:
    """A json file of a list that is written entry by entry; it has its name when it is closed."""

    def __init__(self, path: Path) -> None:
        self._path, self._part = path, path.with_name(path.name + ".part")
        self._file = self._part.open("w", encoding="utf-8")
        self._before = "["

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add an entry of plain values, in a line of its own."""
        self._file.write(f"{self._before}\n{json.dumps(entry, ensure_ascii=False, allow_nan=False)}")
        self._before = ","

    def close(self) -> None:
        """Finish the file."""
        self._file.write("[]\n" if self._before == "[" else "\n]\n")
        self._file.close()
        self._part.replace(self._path)


class ResultsCsv:
    """results.csv: one row for each epoch; the first row's keys, in their order, are the header."""

    def __init__(self, path: Path, *, first_epoch: int = 0) -> None:
        """Start the file anew, or keep of an earlier run the rows before `first_epoch`, where it resumes.

        Raises:
            InputError: an earlier file to resume has no epochs.
        """
        self.path = path
        self._header: list[str] = []
        self._rows: list[Mapping[str, Any]] = []
        if first_epoch == 0 or not path.is_file():
            path.unlink(missing_ok=True)
            return
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        self._header = list(reader.fieldnames or ())
        if "epoch" not in self._header:
            raise InputError(f"{path}: expected a column 'epoch', found {', '.join(self._header) or 'nothing'}")
        self._rows = [row for row in rows if int(row["epoch"]) < first_epoch]
        write_text_atomically(path, _csv_text(self._header, self._rows))

    def append(self, row: Mapping[str, float]) -> None:
        """Add an epoch; the file is written anew, whole or not at all.

        Raises:
            InputError: the row's keys are not the header's.
        """
        self._header = self._header or list(row)
        if list(row) != self._header:
            differ = sorted(set(row) ^ set(self._header)) or ["their order"]
            raise InputError(f"{self.path}: the columns are not those of its first row: {', '.join(differ)}")
        self._rows.append({key: _short(value) for key, value in row.items()})
        write_text_atomically(self.path, _csv_text(self._header, self._rows))


def _csv_text(header: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _short(value: Any) -> Any:
    """Six digits are enough for a table; integers and texts stay as they are."""
    return f"{float(value):.6g}" if isinstance(value, float | np.floating | Tensor) else value


def write_yaml(path: Path, content: Mapping[str, Any], *, comment: str = "") -> None:
    """Write settings in their order, under a line of comment if there is one."""
    text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
    write_text_atomically(path, f"# {comment}\n{text}" if comment else text)


def write_metrics_json(path: Path, metrics: Mapping[str, Any]) -> None:
    """Write metrics and settings with sorted keys; what is not a finite number becomes null."""
    text = json.dumps(_plain(metrics), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_text_atomically(path, text + "\n")


def _plain(value: Any) -> Any:
    """Turn a value into what JSON has."""
    if isinstance(value, np.generic | np.ndarray | Tensor):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table; the first row's keys are the header, a figure that does not exist is `nan`."""
    assert rows, "a table has a row"
    text = _csv_text(list(rows[0]), [{key: _short(value) for key, value in row.items()} for row in rows])
    write_text_atomically(path, text)


def console_table(
    metrics: Mapping[str, Any], per_class: Sequence[Mapping[str, Any]] | None = None, *, bands: Sequence[str] = BANDS
) -> str:
    """Lay out metrics as the table that validation prints: a line for all classes, then one for each.

    Args:
        metrics: `images`, `labels`, METRICS and `bands`, fractions; a figure that is absent or NaN is shown as `-`.
        per_class: the same with the class's name under `name`.
        bands: the figures by size.
    """
    return class_table([{**metrics, "name": "all"}, *(per_class or ())], ("images", "labels"), (*METRICS, *bands))


def class_table(lines: Sequence[Mapping[str, Any]], counts: Sequence[str], figures: Sequence[str]) -> str:
    """Lay out a line for each class under `name`, its counts and its figures; what it lacks is shown as `-`."""
    cell = max(8, *(len(name) + 2 for name in figures))
    width = max(22, *(len(str(line["name"])) for line in lines))
    header = f"{'Class':>{width}}" + "".join(f"{name.capitalize():>9}" for name in counts)
    rows = [header + "".join(f"{name:>{cell}}" for name in figures)]
    for line in lines:
        told = "".join(f"{line.get(key, '-'):>9}" for key in counts)
        values = (_figure(float(line.get(name, math.nan)), 3) for name in figures)
        rows.append(f"{line['name']:>{width}}{told}" + "".join(f"{value:>{cell}}" for value in values))
    return "\n".join(rows)


def comparison_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Lay out figures of several origins under each other, in the columns of the first."""
    columns = list(next(iter(rows.values())))
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{name:>9}" for name in columns)]
    for origin, figures in rows.items():
        cells = "".join(f"{_figure(figures[name], 4):>9}" for name in columns)
        lines.append(f"{origin:>{width}}{cells}")
    return "\n".join(lines)


def _figure(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


class TensorBoard:
    """Events for TensorBoard in a run's folder."""

    def __init__(self, log_dir: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (loads TensorFlow where that is installed)

        self._writer = SummaryWriter(str(log_dir))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to the line of each key."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, float(value), step)

    def picture(self, tag: str, path: Path, step: int) -> None:
        """Show a picture that the run has written."""
        self._writer.add_image(tag, swap_red_and_blue(read_image(path)), step, dataformats="HWC")

    def graph(self, model: nn.Module, example: Tensor) -> None:
        """Draw the model's graph, traced in evaluation mode so that no statistic moves."""
        training = model.training
        model.eval()
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a trace warns of every shape that Python looks at
                self._writer.add_graph(model, example, use_strict_trace=False)
        finally:
            model.train(training)

    def close(self) -> None:
        """Write what is still in memory and close the file."""
        self._writer.close()
