"""Measure a trained classifier on a split of a set.

    python classify/val.py --weights runs/classify/train/exp/weights/best.pt --data glyphs --split test

Writes metrics.json, per_class.csv, per_image.csv, the confusion matrix, a picture of the worst mistakes, and
report.html that shows them all, to PROJECT/NAME.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script, Python looks for modules beside this file: look one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataclasses import asdict, dataclass

from data.class_dataset import ClassDataset, make_class_loader
from data.config import SPLITS
from utils.checkpoint import read_weights
from utils.class_report import write_class_report
from utils.classification import (
    ClassDataOptions,
    Classifier,
    ClassifierOptions,
    ClassReport,
    build_classifier,
    read_splits,
    refuse_other_classes,
    trained_share,
    validate_classes,
    view,
)
from utils.options import InputError, option, run_script
from utils.runs import make_run_folder, start_logging
from utils.upstream import select_device


@dataclass
class Options(ClassDataOptions, ClassifierOptions):
    """Command line of classify/val.py; a field is a flag."""

    split: str = option("val", "images to measure on", choices=SPLITS)
    batch_size: int = option(128, "images in a batch", aliases=("--batch",), least=1)
    workers: int = option(8, "processes that load images, no more than there are cores", least=0)
    verbose: bool = option(False, "show each class")
    noplots: bool = option(False, "write no pictures")
    project: str = option("runs/classify/val", "folder of runs")


def run(**options: object) -> ClassReport:
    """Validate from Python, with the command line's options as arguments."""
    return main(Options(**options))  # type: ignore[arg-type]


def main(options: Options) -> ClassReport:
    """Validate as the options say."""
    logger = start_logging()
    if not options.weights:
        raise InputError("--weights: give the checkpoint to measure")
    device = select_device(options.device)
    weights = read_weights(Path(options.weights))
    model = build_classifier(weights)
    splits = read_splits(options, trained_share(weights))
    if options.split not in splits:
        raise InputError(f"--split {options.split}: {options.data} has {', '.join(splits)}")
    split = splits[options.split]
    refuse_other_classes(model, split.names, options.weights)
    size, shrink = view(model, options.imgsz, options.shrink)
    folder = make_run_folder(options.project, options.name, exist_ok=options.exist_ok)
    dataset = ClassDataset(split, size, shrink=shrink)
    loader = make_class_loader(dataset, batch_size=options.batch_size, workers=options.workers, train=False)
    classifier = Classifier(model, device, half=options.half, folded=options.fold)
    pictures = None if options.noplots else folder
    report = validate_classes(classifier, loader, split, pictures=pictures, description=options.split)
    logger.info(report.table(per_class=options.verbose))
    title = f"{Path(options.weights).name} on {Path(options.data).name}, {options.split}"
    write_class_report(report, folder, asdict(options), title=title, plots=not options.noplots)
    logger.info(f"results in {folder}")
    return report


if __name__ == "__main__":
    run_script(main, Options, "Measure a trained classifier on a split of a set.")
