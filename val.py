"""Measure a trained detector on a data set, with COCO's metrics.

    python val.py --weights runs/train/exp/weights/best.pt --data glyphs.yaml --img 320

Writes metrics.json, per_class.csv, per_image.csv, curves, the confusion matrix, pictures of the worst mistakes, and
report.html that shows them all, to PROJECT/NAME. A test split without labels gives the file for COCO's server instead.
"""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from data.annotations import Annotations
from data.config import DataConfig, load_data_config, prepare
from data.dataset import DetectionDataset
from data.loader import make_loader
from data.tiling import WholeImages
from models.yolo import Model
from utils.areas import parse_bands
from utils.engine import NmsSettings
from utils.official import submission_name
from utils.options import InputError, option, run_script
from utils.plots import plot_study
from utils.report import comparison_table, write_csv
from utils.report_files import write_coco_json, write_detections, write_report
from utils.runs import check_image_size, make_run_folder, open_model, read_split, refuse_unused, start_logging
from utils.tiles import DetectorOptions, make_detector, tile_side
from utils.upstream import select_device
from utils.validation import LabelFiles, Report, validate

STUDY_SIZES = range(256, 1536 + 1, 128)


@dataclass
class Options(DetectorOptions):
    """Command line of val.py; a field is a flag."""

    data: str = option("data/coco128.yaml", "data YAML, also by its name in data/")
    imgsz: int = option(640, "image size in pixels, of the longer side", aliases=("--img", "--img-size"), least=1)
    conf_thres: float = option(0.001, "least confidence of a detection", aliases=("--conf",), least=0, most=1)
    iou_thres: float = option(0.6, "overlap above which NMS drops a box", aliases=("--iou",), least=0, most=1)
    max_det: int = option(300, "most detections of an image; over 100 adds a recall for so many", least=1)
    areas: str = option("0,32,96,inf", "bounds of the bands of object size, sides in pixels, that have their own AP")
    task: str = option("val", "what to do", choices=("train", "val", "test", "speed", "study"))
    workers: int = option(8, "processes that load images, no more than there are cores", least=0)
    single_cls: bool = option(False, "treat all classes as one")
    verbose: bool = option(False, "show each class")
    save_hybrid: bool = option(False, "write the labels and the detections beyond them as YOLO txt")
    save_json: bool = option(False, "write COCO's result json and ask pycocotools for its figures")
    project: str = option("runs/val", "folder of runs")


def run(**options: object) -> Report:
    """Validate from Python, with the command line's options as arguments."""
    return main(Options(**options))  # type: ignore[arg-type]


def main(options: Options) -> Report:
    """Validate as the options say; returns the (last) report."""
    logger = start_logging()
    if not options.weights:
        raise InputError("--weights: give the checkpoint to measure")
    refuse_unused(options, ("overlap", "full", "merge"), ("tile",))
    refuse_unused(options, ("save_conf",), ("save_txt", "save_hybrid"))
    parse_bands(options.areas)  # before anything is read
    config = load_data_config(options.data)
    device = select_device(options.device)
    prepare(config)
    split = options.task if options.task in ("train", "val", "test") else "val"
    annotations = read_split(config, split)
    model = open_model(options.weights, None if options.single_cls else annotations.names)
    if options.single_cls:
        annotations = annotations.as_single_class()
    if options.tile:
        tile_side(options.tile, options.imgsz, Path(options.weights))  # refused before anything is written
    folder = make_run_folder(options.project, options.name, exist_ok=options.exist_ok)
    measurement = _Measurement(options, config, split, annotations, model, device, folder)
    if options.task == "study":
        report = _study(measurement)
    elif options.task == "speed":
        measurement = replace(measurement, options=replace(options, conf_thres=0.25, iou_thres=0.45))
        report = measurement.measure()
        logger.info(report.table())
        measurement.write(report)
    else:
        report = measurement.measure()
        if options.task == "test" and not len(annotations.classes):
            measurement.write_submission(report)
        else:
            logger.info(report.table(per_class=options.verbose))
            measurement.write(report)
    logger.info(f"results in {folder}")
    return report


@dataclass(frozen=True)
class _Measurement:
    """A model and a split, brought together by the options."""

    options: Options
    config: DataConfig
    split: str
    annotations: Annotations
    model: Model
    device: torch.device
    folder: Path

    def measure(self) -> Report:
        """Validate once."""
        options = self.options
        size = check_image_size(options.imgsz, self.model.max_stride)
        kind, batch_size = (WholeImages, 1) if options.tile else (DetectionDataset, options.batch_size)
        dataset = kind(self.annotations, size, stride=self.model.max_stride, rect=True)
        loader = make_loader(dataset, batch_size=batch_size, workers=options.workers, train=False)
        settings = NmsSettings(
            options.conf_thres, options.iou_thres, options.max_det, multi_label=True, single_class=options.single_cls
        )
        detector = make_detector(self.model, self.device, settings, options, size)
        if options.task in ("speed", "study"):
            detector.warm_up(next(iter(loader)))
        files = None
        if options.save_txt or options.save_hybrid:
            files = LabelFiles(
                self.folder / "labels", self.annotations, options.save_conf, options.save_hybrid, options.iou_thres
            )
        pictures = self.folder if options.task in ("train", "val", "test") else None
        bands = parse_bands(options.areas)
        return validate(detector, loader, self.annotations, bands=bands, pictures=pictures, label_files=files)

    def write(self, report: Report) -> None:
        """Write the report's files and, if asked, have pycocotools measure as well."""
        weights, confirmed = Path(self.options.weights), None
        if self.options.save_json or self.config.source.name == "coco.yaml":
            path = self.folder / f"{weights.stem}_predictions.json"
            truth = None if self.options.single_cls else self.config.annotations.get(self.split)
            confirmed = write_coco_json(report, path, truth)
            ours = {key: report.metrics.figures.get(key, math.nan) for key in confirmed}
            start_logging().info(comparison_table({"this project": ours, "pycocotools": confirmed}))
        title = f"{weights.name} on {self.config.source.parent.name}/{self.config.source.name}, {self.split}"
        plots = self.options.task != "speed"
        write_report(report, self.folder, asdict(self.options), title=title, confirmed=confirmed, plots=plots)

    def write_submission(self, report: Report) -> None:
        """Write what was found for COCO's server, which has the labels."""
        truth, logger = self.config.annotations.get(self.split), start_logging()
        split = truth.stem if truth else f"{self.config.source.stem}-{self.split}"
        path = self.folder / submission_name(split, Path(self.options.weights))
        rows = write_detections(self.annotations, report.evaluation.detections, path)
        logger.info(f"{self.split}: no labels, so nothing is measured; {len(rows)} detections in {path.name}")
        if truth is None:
            logger.warning("without a COCO json of this split its images are numbered by their paths, classes from 0")
        logger.info(report.speeds())


def _study(measurement: _Measurement) -> Report:
    """Measure at many image sizes: a table, a csv and a picture of AP against time."""
    rows, report = [], None
    for size in STUDY_SIZES:
        report = replace(measurement, options=replace(measurement.options, imgsz=size)).measure()
        times = report.evaluation.milliseconds
        row = {"imgsz": size, **report.metrics.figures, **{f"{name}_ms": value for name, value in times.items()}}
        rows.append(row)
        start_logging().info(f"{size} px: AP {row['AP']:.4f}, {times['inference']:.1f} ms")
    assert report is not None
    name = f"study_{measurement.config.source.stem}_{Path(measurement.options.weights).stem}"
    write_csv(measurement.folder / f"{name}.csv", rows)
    plot_study(rows, measurement.folder / "study.png")
    return report


if __name__ == "__main__":
    run_script(main, Options, "Measure a trained detector with COCO's metrics.")
