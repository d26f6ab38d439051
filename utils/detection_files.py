"""What detection writes, a form in each class: texts, tables, crops, drawn images and videos."""

import csv
import re
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data.frames import Frame
from data.video import SUFFIXES as VIDEO_SUFFIXES
from data.video import VideoWriter
from utils.boxes import resize
from utils.drawing import save_image
from utils.report import JsonList, folder_names, unique_stems, write_text_atomically
from utils.upstream import save_one_box
from utils.validation import yolo_lines

WRITABLE = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
CSV_COLUMNS = ("image", "frame", "class", "name", "confidence", "x1", "y1", "x2", "y2")


@dataclass(frozen=True)
class Found:
    """A frame with its detections (n, 6) x1, y1, x2, y2, confidence, class.

    `stem` names the results of its file, `name` its own; `picture` is the frame with the boxes drawn, where wanted.
    """

    frame: Frame
    rows: Tensor
    stem: str
    picture: npt.NDArray[np.uint8] | None = None

    @property
    def name(self) -> str:
        """The stem, with the frame's number in a video."""
        return f"{self.stem}_{self.frame.number}" if self.frame.is_video else self.stem


def result_stems(files: Sequence[Path]) -> dict[Path, str]:
    """A stem for each file, so that no image has the name of a frame of a video: STEM_1, STEM_2, and so on."""
    videos = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
    images = [file for file in files if file.suffix.lower() not in VIDEO_SUFFIXES]
    stems = unique_stems(images)
    taken = {*stems, *(re.sub("_[0-9]+$", "", stem) for stem in stems)}
    return dict(zip(images + videos, stems + unique_stems(videos, taken), strict=True))


class Form(Protocol):
    """A form in which detections are written."""

    def write(self, found: Found) -> None:
        """Write what was found in a frame."""

    def close(self) -> None:
        """Finish what is open."""


@dataclass
class TxtFiles:
    """A YOLO txt for each frame in which something was found."""

    folder: Path
    confidences: bool
    corners: bool  # x1, y1, x2, y2 in place of x, y, w, h

    def write(self, found: Found) -> None:
        """Write a frame's file."""
        path = self.folder / f"{found.name}.txt"
        if not len(found.rows):
            path.unlink(missing_ok=True)  # of an earlier run in the same folder
            return
        self.folder.mkdir(exist_ok=True)
        size = torch.tensor((found.frame.image.shape[1], found.frame.image.shape[0]) * 2)
        text = yolo_lines(found.rows, size, self.confidences, corners=self.corners)
        write_text_atomically(path, text)

    def close(self) -> None:
        """Each file is finished already."""


class CsvFile:
    """A table with a row for each detection."""

    def __init__(self, path: Path, names: list[str]) -> None:
        self._names = names
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(CSV_COLUMNS)

    def write(self, found: Found) -> None:
        """Add a frame's rows."""
        number = found.frame.number or ""
        for *corners, confidence, label in found.rows.tolist():
            row = (found.frame.name, number, int(label), self._names[int(label)], f"{confidence:.5f}")
            self._writer.writerow((*row, *(f"{value:.2f}" for value in corners)))

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


class JsonFiles:
    """Two lists with an entry for each detection: one that tells all, and COCO's result form.

    COCO's image id is an image's name without suffix, a number if it is one, with a frame's number behind it; its
    category is the class's number.
    """

    def __init__(self, path: Path, coco: Path, names: list[str]) -> None:
        self._names = names
        self._stack = ExitStack()
        self._all, self._coco = (self._stack.enter_context(closing(JsonList(file))) for file in (path, coco))

    def write(self, found: Found) -> None:
        """Add a frame's entries."""
        image_id = int(found.name) if found.name.isdecimal() else found.name
        for *corners, confidence, label in found.rows.tolist():
            x1, y1, x2, y2 = (round(value, 3) for value in corners)
            score, number = round(confidence, 5), int(label)
            place = {"file": found.frame.name, "frame": found.frame.number}
            what = {"class": number, "name": self._names[number], "confidence": score}
            self._all.append({**place, **what, "box": [x1, y1, x2, y2]})
            bbox = [x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)]
            self._coco.append({"image_id": image_id, "category_id": number, "bbox": bbox, "score": score})

    def close(self) -> None:
        """Finish both files."""
        self._stack.close()


class Crops:
    """A picture of each detection, in a folder for each class."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self._folders = [folder / name for name in folder_names(names)]

    def write(self, found: Found) -> None:
        """Save a frame's crops."""
        for row in found.rows:
            path = self._folders[int(row[5])] / f"{found.name}.jpg"
            save_one_box(row[:4], found.frame.image, file=path, BGR=True)

    def close(self) -> None:
        """Each picture is finished already."""


class Pictures:
    """The drawn images and videos; a video keeps its number of frames and its size."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._videos: dict[Path, VideoWriter] = {}  # that are open: all streams, or the one file that is read

    def write(self, found: Found) -> None:
        """Save an image, or add a frame to its video: as often as it takes to fill the place of dropped ones."""
        assert found.picture is not None
        frame = found.frame
        if not frame.live and frame.path not in self._videos:
            self.close()
        if frame.is_video:
            writer = self._writer(frame, found.stem)
            picture = resize(found.picture, writer.size_wh)  # a video may change its size on the way
            for _ in range(1 + frame.dropped):
                writer.write(picture)
            return
        suffix = frame.path.suffix if frame.path.suffix.lower() in WRITABLE else ".jpg"
        save_image(found.picture, self._folder / f"{found.stem}{suffix}")

    def close(self) -> None:
        """Finish the videos."""
        with ExitStack() as stack:  # all of them, even if one turns out not to be whole
            while self._videos:
                stack.callback(self._videos.popitem()[1].close)

    def _writer(self, frame: Frame, stem: str) -> VideoWriter:
        """The open video of this frame's file or stream."""
        if frame.path not in self._videos:
            size = (frame.image.shape[1], frame.image.shape[0])
            self._videos[frame.path] = VideoWriter(self._folder / f"{stem}.mp4", fps=frame.fps, size_wh=size)
        return self._videos[frame.path]


class Output:
    """All that detection writes, and a count of what it found; a context manager that finishes what is open."""

    def __init__(self, names: list[str], forms: list[Form]) -> None:
        self._names, self._forms = names, forms
        self._counts = [0] * len(names)
        self.frames = 0
        self._stack = ExitStack()

    def __enter__(self) -> "Output":
        for form in self._forms:
            self._stack.enter_context(closing(form))
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    def write(self, found: Found) -> None:
        """Write a frame in each form."""
        self.frames += 1
        for label in found.rows[:, 5].long().tolist():
            self._counts[label] += 1
        for form in self._forms:
            form.write(found)

    def summary(self) -> str:
        """How many of which class were found."""
        counts = zip(self._counts, self._names, strict=True)
        return ", ".join(f"{count} {name}" for count, name in counts if count) or "nothing found"
