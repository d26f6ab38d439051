"""Find objects in images and videos.

    python detect.py --weights runs/train/exp/weights/best.pt --source path/to/images --img 320

Draws and saves what is found in PROJECT/NAME, and writes it as text if asked.
"""

import csv
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor

from data.dataset import letterboxed_item
from data.loader import collate
from data.sources import Frame, Source, VideoWriter, open_source
from utils.boxes import resize
from utils.drawing import draw_detections
from utils.engine import Detector, NmsSettings, Predictor
from utils.options import InputError, Ranged, option, run_script
from utils.report import folder_names, unique_stems, write_text_atomically
from utils.runs import check_image_size, make_run_folder, open_model, start_logging
from utils.tiles import MERGES, TiledPredictor, tiled
from utils.upstream import Progress, progress, save_one_box, select_device
from utils.validation import yolo_lines

WRITABLE = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
CSV_COLUMNS = ("image", "frame", "class", "name", "confidence", "x1", "y1", "x2", "y2")


@dataclass
class Options(Ranged):
    """Command line of detect.py; a field is a flag."""

    weights: str = option("", "checkpoint to detect with", aliases=("--weight",))
    source: str = option("data/images", "image, folder, pattern, .txt list or video")
    imgsz: list[int] | int = option(
        [640], "image size in pixels, of the longer side; of two, the larger", aliases=("--img", "--img-size"), least=1
    )
    conf_thres: float = option(0.25, "least confidence of a detection", aliases=("--conf",), least=0, most=1)
    iou_thres: float = option(0.45, "overlap above which NMS drops a box", aliases=("--iou",), least=0, most=1)
    max_det: int = option(1000, "most detections of an image", least=1)
    device: str = option("", "cpu, or a GPU's number; empty chooses")
    save_txt: bool = option(False, "write the detections as YOLO txt")
    save_csv: bool = option(False, "write predictions.csv, a row for each detection")
    save_conf: bool = option(False, "put the confidence into the txt files")
    save_crop: bool = option(False, "save each detection as a picture")
    nosave: bool = option(False, "save no drawn images or videos")
    classes: list[int] | None = option(None, "keep these classes only, by number")
    agnostic_nms: bool = option(False, "suppress across classes")
    augment: bool = option(False, "test-time augmentation: scaled and mirrored views")
    project: str = option("runs/detect", "folder of runs")
    name: str = option("exp", "name of the run")
    exist_ok: bool = option(False, "write into an existing run's folder")
    tile: str = option("", "look at large images in tiles of so many pixels; 'auto' keeps the scale of training")
    overlap: float = option(0.2, "least share of a tile that the next one shows again", least=0, most=0.9)
    full: bool = option(True, "with tiles, look at the whole image, too")
    merge: str = option("nmm", "what makes tiles' detections of one object one: suppression or merging", choices=MERGES)
    batch_size: int = option(16, "tiles in a forward pass", aliases=("--batch",), least=1)
    line_thickness: int | None = option(None, "width of the boxes' lines in pixels; by the image's size when not given")
    hide_labels: bool = option(False, "draw boxes without names")
    hide_conf: bool = option(False, "draw names without confidences")
    half: bool = option(False, "float16 on CUDA, bfloat16 on CPUs")
    fold: bool = option(True, "run space-to-depth and the convolution after it in one step, exactly")
    vid_stride: int = option(1, "take every so many frames of a video", least=1)


def run(**options: object) -> Path:
    """Detect from Python, with the command line's options as arguments; returns the run's folder."""
    return main(Options(**options))[0]  # type: ignore[arg-type]


def main(options: Options) -> tuple[Path, Source]:
    """Detect as the options say; returns the run's folder, and the source with what could not be read."""
    logger = start_logging()
    if not options.weights:
        raise InputError("--weights: give the checkpoint to detect with")
    source = open_source(options.source, vid_stride=options.vid_stride)
    model = open_model(options.weights)
    if any(not 0 <= label < len(model.names) for label in options.classes or []):
        raise InputError(f"--classes {options.classes}: the model has classes 0 to {len(model.names) - 1}")
    sizes = options.imgsz if isinstance(options.imgsz, list) else [options.imgsz]
    size = check_image_size(max(sizes), model.max_stride)
    settings = NmsSettings(
        options.conf_thres, options.iou_thres, options.max_det, options.classes, options.agnostic_nms
    )
    predictor = Predictor(
        model,
        select_device(options.device),
        settings=settings,
        half=options.half,
        augment=options.augment,
        folded=options.fold,
    )
    detector = tiled(predictor, options, size)
    folder = make_run_folder(options.project, options.name, exist_ok=options.exist_ok)
    frames = 0
    with Output(folder, model.names, source.files, options) as output:
        for frame in _with_progress(source, detector):
            item = letterboxed_item(frame.image, size, model.max_stride)
            output.write(frame, detector(collate([item])).original[0].cpu())
            frames += 1
    times = predictor.watch.seconds.items()
    speeds = ", ".join(f"{1e3 * value / max(frames, 1):.1f} ms {name}" for name, value in times)
    logger.info(f"{frames} frames, {output.summary()}; {speeds} a frame")
    logger.info(f"results in {folder}")
    return folder, source


def _with_progress(source: Source, detector: Detector) -> Iterator[Frame]:
    """Frames with a bar that counts files, and tells the frame of a video and the tile of an image."""
    bar: Progress[Frame] = progress(description="detect", total=len(source.files), unit="file")
    with bar:
        last = None
        if isinstance(detector, TiledPredictor):
            detector.on_tiles = lambda done, total: bar.describe(f"detect tile {done}/{total}")
        for frame in source:
            if last is not None and frame.path != last:
                bar.update()
            last = frame.path
            if frame.is_video:
                bar.describe(f"detect {frame.path.name} frame {frame.index + 1}/{frame.count or '?'}")
            yield frame
        bar.update()


class Output:
    """Everything that detection writes, frame by frame; a context manager that closes what is open."""

    def __init__(self, folder: Path, names: list[str], files: list[Path], options: Options) -> None:
        self.folder = folder
        self.names = names
        self.options = options
        self.found = [0] * len(names)
        self._folder_names = folder_names(names)
        self._stack = ExitStack()
        self._stems = dict(zip(files, unique_stems(files), strict=True))
        self._video: tuple[Path, VideoWriter] | None = None
        self._csv: Any = self._open_csv() if options.save_csv else None

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, *_: object) -> None:
        self._close_video()
        self._stack.close()

    def write(self, frame: Frame, rows: Tensor) -> None:
        """Write a frame with its detections (n, 6) in every form that was asked for."""
        for label in rows[:, 5].long().tolist():
            self.found[label] += 1
        stem = self._stems[frame.path]
        name = f"{stem}_{frame.index + 1}" if frame.is_video else stem
        if self.options.save_txt and len(rows):
            labels = self.folder / "labels"
            labels.mkdir(exist_ok=True)
            size = torch.tensor((frame.image.shape[1], frame.image.shape[0]) * 2)
            write_text_atomically(labels / f"{name}.txt", yolo_lines(rows, size, self.options.save_conf))
        if self.options.save_csv:
            self._write_csv(frame, rows)
        if self.options.save_crop:
            for row in rows:
                path = self.folder / "crops" / self._folder_names[int(row[5])] / f"{name}.jpg"
                save_one_box(row[:4], frame.image, file=path, BGR=True)
        if not self.options.nosave:
            self._draw(frame, rows, stem)

    def summary(self) -> str:
        """How many of which class were found."""
        counts = [f"{count} {name}" for name, count in zip(self.names, self.found, strict=True) if count]
        return ", ".join(counts) or "nothing found"

    def _draw(self, frame: Frame, rows: Tensor, stem: str) -> None:
        options = self.options
        picture = draw_detections(
            frame.image,
            rows,
            self.names,
            line_width=options.line_thickness,
            hide_labels=options.hide_labels,
            hide_conf=options.hide_conf,
            copy=False,  # nothing looks at the image after this, and it may be large
        )
        if frame.is_video:
            writer = self._writer(frame, stem)
            writer.write(resize(picture, writer.size_wh))  # a video may change its size on the way
            return
        suffix = frame.path.suffix if frame.path.suffix.lower() in WRITABLE else ".jpg"
        encoded = cv2.imencode(suffix, picture)[1]
        encoded.tofile(self.folder / f"{stem}{suffix}")  # by numpy, which takes any file name

    def _writer(self, frame: Frame, stem: str) -> VideoWriter:
        """The open video of this frame's file."""
        if self._video is None or self._video[0] != frame.path:
            self._close_video()
            size = (frame.image.shape[1], frame.image.shape[0])
            self._video = frame.path, VideoWriter(self.folder / f"{stem}.mp4", fps=frame.fps, size_wh=size)
        return self._video[1]

    def _close_video(self) -> None:
        if self._video is not None:
            self._video[1].close()
            self._video = None

    def _open_csv(self) -> Any:
        file = self._stack.enter_context((self.folder / "predictions.csv").open("w", newline="", encoding="utf-8"))
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        return writer

    def _write_csv(self, frame: Frame, rows: Tensor) -> None:
        number = frame.index + 1 if frame.is_video else ""
        for x1, y1, x2, y2, confidence, label in rows.tolist():
            corners = (f"{value:.2f}" for value in (x1, y1, x2, y2))
            row = (frame.path, number, int(label), self.names[int(label)], f"{confidence:.5f}", *corners)
            self._csv.writerow(row)


def command_line(options: Options) -> None:
    """Detect; exit with 1 when a part of the source could not be read, the rest being done."""
    _, source = main(options)
    if source.failures:
        sys.stderr.write(f"{len(source.failures)} of {len(source.files)} files could not be read\n")
        sys.exit(1)


if __name__ == "__main__":
    run_script(command_line, Options, "Find objects in images and videos.")
