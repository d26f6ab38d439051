"""Find objects in images, videos and streams.

    python detect.py --weights runs/train/exp/weights/best.pt --source path/to/images --img 320

Draws and saves what is found in PROJECT/NAME, and writes it as text if asked.
"""

import re
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

from data.frames import Source
from data.sources import open_source
from data.streams import StreamSettings
from utils.detection import Detection, Style
from utils.detection_files import Crops, CsvFile, Form, Found, JsonFiles, Output, Pictures, TxtFiles
from utils.engine import NmsSettings
from utils.options import InputError, option, refuse_unknown, run_script
from utils.pipeline import Pipeline
from utils.runs import (
    StopSignals,
    check_image_size,
    exit_if_incomplete,
    make_run_folder,
    open_model,
    refuse_unused,
    start_logging,
)
from utils.tiles import DetectorOptions, TiledPredictor, make_detector
from utils.upstream import Progress, progress, select_device
from utils.window import Window


@dataclass
class Options(DetectorOptions):
    """Command line of detect.py; a field is a flag."""

    source: str = option(
        "",
        "image, video, folder, pattern, .txt list of files, .streams list, camera number, a stream's URL, http(s) file,"
        " or 'screen [monitor] [left top width height]'",
    )
    imgsz: list[int] | int = option(
        [640], "image size in pixels, of the longer side; of two, the larger", aliases=("--img", "--img-size"), least=1
    )
    conf_thres: float = option(0.25, "least confidence of a detection", aliases=("--conf",), least=0, most=1)
    class_conf: list[str] | None = option(None, "another least confidence for some classes: person=0.4 2=0.6")
    iou_thres: float = option(0.45, "overlap above which NMS drops a box", aliases=("--iou",), least=0, most=1)
    max_det: int = option(1000, "most detections of an image", least=1)
    view_img: bool = option(False, "show what is found in a window; q ends")
    save_format: int = option(
        0, "a box in the txt files: 0 x y w h, 1 x1 y1 x2 y2, divided by the image's size", choices=(0, 1)
    )
    save_csv: bool = option(False, "write predictions.csv, a row for each detection")
    save_json: bool = option(False, "write predictions.json, and predictions_coco.json in COCO's result form")
    save_crop: bool = option(False, "save each detection as a picture")
    nosave: bool = option(False, "save no drawn images or videos")
    classes: list[str] | None = option(None, "keep these classes only, by name or number")
    agnostic_nms: bool = option(False, "suppress across classes")
    batch_size: int = option(
        8, "a file's frames, or an image's tiles, in a forward pass", aliases=("--batch",), least=1
    )
    line_thickness: int | None = option(
        None, "width of the boxes' lines in pixels; by the image's size when not given", least=1, most=100
    )
    hide_labels: bool = option(False, "draw boxes without names")
    hide_conf: bool = option(False, "draw names without confidences")
    vid_stride: int = option(1, "take every so many frames of a video or stream", least=1)
    stream_buffer: bool = option(False, "let a stream's frames wait rather than drop them to stay live")
    reconnect: int = option(10, "attempts in a row to get a lost stream back", least=0)


def run(**options: object) -> Path:
    """Detect from Python, with the command line's options as arguments; returns the run's folder."""
    return main(Options(**options))[0]  # type: ignore[arg-type]


def main(options: Options) -> tuple[Path, Source]:
    """Detect as the options say; returns the run's folder, and the source with what could not be read."""
    logger = start_logging()
    _check(options)
    model = open_model(options.weights)
    settings = _nms_settings(options, model.names)
    sizes = options.imgsz if isinstance(options.imgsz, list) else [options.imgsz]
    size = check_image_size(max(sizes), model.max_stride)
    detector = make_detector(model, select_device(options.device), settings, options, size)
    streams = StreamSettings(keep_all=options.stream_buffer, reconnect=options.reconnect)
    window = Window() if options.view_img else None
    with StopSignals(), open_source(options.source, vid_stride=options.vid_stride, streams=streams) as source:
        folder = make_run_folder(options.project, options.name, exist_ok=options.exist_ok)
        output = Output(model.names, _forms(folder, model.names, options))
        style = None if options.nosave and window is None else _style(options)
        detection = Detection(source, detector, size, model, output, style, options.batch_size)
        try:
            with output, closing(window) if window else nullcontext():
                _detect(detection, window)
        finally:  # a stream has no end but a signal
            times = detector.watch.seconds.items()
            speeds = ", ".join(f"{1e3 * value / output.frames:.1f} ms {name}" for name, value in times if output.frames)
            logger.info(f"{output.frames} frames, {output.summary()}{f'; {speeds} a frame' if speeds else ''}")
            logger.info(f"results in {folder}")
    return folder, source


def _check(options: Options) -> None:
    """Refuse what is not enough to go on, or would be without effect."""
    if not options.weights:
        raise InputError("--weights: give the checkpoint to detect with")
    if not options.source:
        raise InputError("--source: give the image, video, folder, list or stream to detect in")
    refuse_unused(options, ("overlap", "full", "merge"), ("tile",))
    refuse_unused(options, ("save_conf", "save_format"), ("save_txt",))


def _nms_settings(options: Options, names: list[str]) -> NmsSettings:
    conf = _thresholds(options.class_conf, options.conf_thres, names) if options.class_conf else options.conf_thres
    classes = [_class_number(str(name), names, "--classes") for name in options.classes or []]
    return NmsSettings(conf, options.iou_thres, options.max_det, classes or None, options.agnostic_nms)


def _thresholds(texts: list[str], usual: float, names: list[str]) -> list[float]:
    """The least confidence of each class: the usual one, or as texts such as person=0.4 say."""
    limits = [usual] * len(names)
    for text in texts:
        name, _, value = text.rpartition("=")
        if not name or not re.fullmatch(r"0?\.\d+|[01]", value):
            raise InputError(f"--class-conf {text}: expected NAME=CONFIDENCE or NUMBER=CONFIDENCE, such as person=0.4")
        limits[_class_number(name, names, "--class-conf")] = float(value)
    return limits


def _class_number(text: str, names: list[str], flag: str) -> int:
    """The class of this name or number."""
    if text in names:
        return names.index(text)
    if not text.removeprefix("-").isdecimal():
        refuse_unknown([text], names, flag)
    if not 0 <= int(text) < len(names):
        raise InputError(f"{flag} {text}: the model has classes 0 to {len(names) - 1}")
    return int(text)


def _style(options: Options) -> Style:
    """How boxes are drawn: into the frames themselves, which may be large, unless crops are cut from them later."""
    return Style(options.line_thickness, options.hide_labels, options.hide_conf, copy=options.save_crop)


def _forms(folder: Path, names: list[str], options: Options) -> list[Form]:
    """What is to be written."""
    forms: list[Form] = []
    if options.save_txt:
        forms.append(TxtFiles(folder / "labels", options.save_conf, corners=options.save_format == 1))
    if options.save_csv:
        forms.append(CsvFile(folder / "predictions.csv", names))
    if options.save_json:
        forms.append(JsonFiles(folder / "predictions.json", folder / "predictions_coco.json", names))
    if options.save_crop:
        forms.append(Crops(folder / "crops", names))
    if not options.nosave:
        forms.append(Pictures(folder))
    return forms


def _detect(detection: Detection, window: Window | None) -> None:
    with detection.pipeline() as results:
        for found in _with_progress(detection, results):
            if window is not None and found.picture is not None and not window.show(found.stem, found.picture):
                break
            del found


def _with_progress(detection: Detection, results: Pipeline[Found]) -> Iterator[Found]:
    """The results with a bar that counts files, or the frames of a single video or of streams, and tells of tiles."""
    source = detection.source
    bar: Progress[Found] = progress(description="detect", total=len(source.files), unit="file")

    def on_tiles(done: int, total: int) -> None:
        results.check()  # a large image takes minutes, and Ctrl-C is not to wait for it
        bar.describe(f"detect tile {done}/{total}")

    with bar:
        if isinstance(detection.detector, TiledPredictor):
            detection.detector.on_tiles = on_tiles
        path, done, by_frame = source.files[0], 0, False
        for found in results:
            frame = found.frame
            if frame.is_video and not by_frame and (source.live or len(source.files) == 1):
                by_frame = True
                bar.count(frame.count, "frame")
            done = done + 1 if frame.path == path else 1  # the number counts those that the stride leaves out, too
            place = f" {done}/{frame.count or '?'}" if frame.is_video and not by_frame else ""
            speeds = ", ".join(f"{value:.1f} ms {name}" for name, value in detection.milliseconds.items())
            bar.describe(f"{found.stem}{place}: {len(found.rows)} found, {speeds}")
            if by_frame or frame.path != path:
                bar.update()
            path = frame.path
            yield found
            del found, frame  # they may be large
        if not by_frame:
            bar.update()


def command_line(options: Options) -> None:
    """Detect; exit with 1 when a part of the source could not be read, the rest being done."""
    exit_if_incomplete(main(options)[1])


if __name__ == "__main__":
    run_script(command_line, Options, "Find objects in images, videos and streams.")
