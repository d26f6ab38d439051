"""The way of a frame through detection, in stages that overlap: read and letterbox, detect, draw and write.

An image may have a gigabyte: each stage forgets it before it asks for the next.
"""

from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, field, replace

from data.dataset import letterboxed_item
from data.frames import Frame, Source
from data.loader import Batch, collate
from models.yolo import Model
from utils.detection_files import Found, Output, result_stems
from utils.drawing import draw_detections
from utils.engine import Detector
from utils.pipeline import Pipeline
from utils.tiles import TiledPredictor

WAITING = 2  # results of a stage that may wait for the next one; of live sources, and with tiles of large images, 1


@dataclass(frozen=True)
class Style:
    """How boxes are drawn; the fields are arguments of `draw_detections`."""

    line_width: int | None = None
    hide_labels: bool = False
    hide_conf: bool = False
    copy: bool = True


@dataclass
class Detection:
    """A model at work on a source."""

    source: Source
    detector: Detector
    size: int  # pixels of the longer side, as the model sees it
    model: Model  # the detector's
    output: Output
    style: Style | None = None  # None draws nothing
    batch_size: int = 1  # frames in a forward pass
    overlap: bool = True  # whether the stages run at the same time
    milliseconds: dict[str, float] = field(default_factory=dict)  # a frame of the last forward pass took, by stage

    def __post_init__(self) -> None:
        self._stems = result_stems(self.source.files)

    def pipeline(self) -> Pipeline[Found]:
        """What is found in each frame, in order and written already; to be entered and iterated over."""
        one = self.source.live or isinstance(self.detector, TiledPredictor)
        depth = (1 if one else WAITING) if self.overlap else 0
        stages = (self._prepare, self._detect, self._write)
        return Pipeline(self.source.groups(self.batch_size), *stages, depth=depth, stop=self.source.stop)

    def _prepare(self, groups: Iterator[list[Frame]]) -> Generator[tuple[list[Frame], Batch], None, None]:
        stride = self.model.max_stride
        for frames in groups:
            yield frames, collate([letterboxed_item(frame.image, self.size, stride) for frame in frames])
            del frames

    def _detect(self, batches: Iterator[tuple[list[Frame], Batch]]) -> Generator[Found, None, None]:
        seconds = self.detector.watch.seconds
        for frames, batch in batches:
            before = dict(seconds)
            found = self.detector(batch).original
            self.milliseconds = {
                name: 1e3 * (value - before.get(name, 0)) / len(frames) for name, value in seconds.items()
            }
            for frame, rows in zip(frames, found, strict=True):
                yield Found(frame, rows.cpu(), self._stems[frame.path])
            del frames, batch, frame

    def _write(self, results: Iterator[Found]) -> Generator[Found, None, None]:
        for found in results:
            drawn = found if self.style is None else self._drawn(found, self.style)
            self.output.write(drawn)
            yield drawn
            del found, drawn

    def _drawn(self, found: Found, style: Style) -> Found:
        picture = draw_detections(found.frame.image, found.rows, self.model.names, **asdict(style))
        return replace(found, picture=picture)
