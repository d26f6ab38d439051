"""The way of a frame through classification, in stages that overlap, and what is written of it."""

import csv
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data.class_dataset import ClassBatch, collate, to_item
from data.frames import Frame, Source, in_groups
from utils.boxes import resize
from utils.class_metrics import KEPT
from utils.classification import Classifier
from utils.detection_files import Found, Output, result_stems
from utils.drawing import draw_detections
from utils.pipeline import Pipeline
from utils.report import JsonList, write_text_atomically

WAITING = 2  # results of a stage that may wait for the next one; of live sources, 1
LEAST_PICTURE = 160  # pixels of a drawn image's shorter side, for the label to be read, ...
MOST_PICTURE = 4096  # ... unless its longer one would have more than these


@dataclass(frozen=True)
class Classified(Found):
    """A frame with its likeliest classes and their probabilities; its one row is the likeliest, of the whole frame."""

    guesses: tuple[tuple[int, float], ...] = ()


@dataclass
class Classification:
    """A classifier at work on a source."""

    source: Source
    classifier: Classifier
    size: int  # side in pixels, as the model sees it
    output: Output
    shrink: int = 1
    draws: bool = True
    batch_size: int = 1  # frames in a forward pass

    def __post_init__(self) -> None:
        self._stems = result_stems(self.source.files)

    def pipeline(self) -> Pipeline[Classified]:
        """What each frame is taken for, in order and written already; to be entered and iterated over."""
        stages = (self._prepare, self._classify, self._write)
        depth = 1 if self.source.live else WAITING
        # what frames become is of one size, whatever theirs is
        groups = self.source.groups(1) if self.source.live else in_groups(self.source, self.batch_size, mixed=True)
        return Pipeline(groups, *stages, depth=depth, stop=self.source.stop)

    def _prepare(self, groups: Iterator[list[Frame]]) -> Generator[tuple[list[Frame], ClassBatch], None, None]:
        for frames in groups:
            yield frames, collate([to_item(frame.image, self.size, self.shrink) for frame in frames])

    def _classify(self, batches: Iterator[tuple[list[Frame], ClassBatch]]) -> Generator[Classified, None, None]:
        for frames, batch in batches:
            guesses = self.classifier(batch).guesses
            for frame, classes, shares in zip(frames, guesses.classes, guesses.probabilities, strict=True):
                found = tuple(zip(classes.tolist(), shares.tolist(), strict=True))
                height, width = frame.image.shape[:2]
                row = torch.tensor([[0, 0, width, height, found[0][1], found[0][0]]])
                yield Classified(frame, row, self._stems[frame.path], self._drawn(frame, row), found)

    def _drawn(self, frame: Frame, row: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | None:
        """The frame with the name of its class, enlarged if it is small."""
        if not self.draws:
            return None
        height, width = frame.image.shape[:2]
        scale = 1 if frame.is_video else -(-LEAST_PICTURE // min(height, width))
        scale = max(min(scale, MOST_PICTURE // max(height, width)), 1)
        picture = resize(frame.image, (width * scale, height * scale))
        whole = row * torch.tensor([scale] * 4 + [1] * 2)
        return draw_detections(picture, whole, self.classifier.model.names)

    def _write(self, results: Iterator[Classified]) -> Generator[Classified, None, None]:
        for found in results:
            self.output.write(found)
            yield found


class GuessCsv:
    """A table with a row for each frame: the likeliest classes with their probabilities, side by side."""

    def __init__(self, path: Path, names: list[str]) -> None:
        self._names = names
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file, lineterminator="\n")
        places = range(1, min(KEPT, len(names)) + 1)
        self._writer.writerow(["image", "frame", *(f"{what}{n}" for n in places for what in ("name", "confidence"))])

    def write(self, found: Found) -> None:
        """Add a frame's row."""
        assert isinstance(found, Classified)
        cells = [text for label, share in found.guesses for text in (self._names[label], f"{share:.5f}")]
        self._writer.writerow([found.frame.name, found.frame.number or "", *cells])

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


class GuessJson:
    """A list with an entry for each frame."""

    def __init__(self, path: Path, names: list[str]) -> None:
        self._names = names
        self._list = JsonList(path)

    def write(self, found: Found) -> None:
        """Add a frame's entry."""
        assert isinstance(found, Classified)
        guesses = [
            {"class": label, "name": self._names[label], "confidence": round(share, 5)}
            for label, share in found.guesses
        ]
        self._list.append({"file": found.frame.name, "frame": found.frame.number, "guesses": guesses})

    def close(self) -> None:
        """Finish the file."""
        self._list.close()


class GuessTxt:
    """A text for each frame: a line `confidence name` for each of the likeliest classes, as YOLOv5 writes it."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self._folder, self._names = folder, names
        folder.mkdir(exist_ok=True)

    def write(self, found: Found) -> None:
        """Write a frame's file."""
        assert isinstance(found, Classified)
        lines = [f"{share:.2f} {self._names[label]}\n" for label, share in found.guesses]
        write_text_atomically(self._folder / f"{found.name}.txt", "".join(lines))

    def close(self) -> None:
        """Each file is finished already."""
