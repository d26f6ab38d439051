"""Look a data set over before it costs a training: what is wrong with it, and how large its objects are.

    python -m data.check mydata.yaml --imgsz 640 --write ../mydata-clean

Writes check.txt, check.json with every problem, and pictures of the labels to PROJECT/NAME; nothing to the data.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from data.annotations import Annotations
from data.check_report import Report
from data.clean import check_target, write_clean
from data.config import load_data_config, prepare
from data.figures import draw_labels, figures, read_anchors
from data.findings import examine
from utils.hyp import Hyp
from utils.options import Ranged, option, run_script
from utils.report import write_metrics_json, write_text_atomically
from utils.runs import make_run_folder, scan_progress, start_logging


@dataclass
class Options(Ranged):
    """Command line of data.check; a field is a flag."""

    data: str = option("", "data YAML, also by its name in data/", positional=True)
    imgsz: int = option(640, "image size in pixels that training is to have", aliases=("--img", "--img-size"), least=1)
    cfg: str = option("yolov5-spd-s.yaml", "model YAML whose anchors are tried, also by its name in models/")
    decode: bool = option(True, "decode every image; else their headers are read alone, in a fraction of the time")
    limit: int = option(10, "most problems of a kind that are printed; check.json has all", least=0)
    strict: bool = option(False, "exit with 1 when there are errors")
    write: str = option("", "new folder for cleaned labels, with links to the images and a data.yaml to train with")
    noplots: bool = option(False, "write no pictures")
    project: str = option("runs/check", "folder of runs")
    name: str = option("exp", "name of the run")
    exist_ok: bool = option(False, "write into an existing run's folder")


def run(**options: object) -> Report:
    """Check from Python, with the command line's options as arguments."""
    return main(Options(**options))  # type: ignore[arg-type]


def main(options: Options) -> Report:
    """Check as the options say."""
    logger = start_logging()
    anchors = read_anchors(options.cfg)
    config = load_data_config(options.data)
    prepare(config)
    if options.write:
        entries = chain.from_iterable(config.splits.values())
        check_target(Path(options.write), [entry for entry in entries if entry.is_dir()])
    found = examine(config, decode=options.decode, bars=scan_progress)
    folder = make_run_folder(options.project, options.name, exist_ok=options.exist_ok)
    report = Report(
        data=str(config.source),
        imgsz=options.imgsz,
        cfg=options.cfg,
        decoded=options.decode,
        splits={split: figures(table, options.imgsz, anchors, Hyp().anchor_t) for split, table in found.tables.items()},
        problems=found.problems,
    )
    text = report.text(options.limit)
    logger.info(text)
    write_text_atomically(folder / "check.txt", text + "\n")
    write_metrics_json(folder / "check.json", report.content())
    if not options.noplots:
        _draw(found.tables, folder)
    logger.info(f"results in {folder}")
    if options.write:
        changes = write_clean(config, found, Path(options.write))
        logger.info(
            f"cleaned labels in {options.write}, train with its data.yaml; changes.txt tells {len(changes)} changes"
        )
    return report


def _draw(tables: Mapping[str, Annotations], folder: Path) -> None:
    """Write labels.jpg of the first split, labels_SPLIT.jpg of the others."""
    for number, (split, table) in enumerate(tables.items()):
        draw_labels(table, folder / (f"labels_{split}.jpg" if number else "labels.jpg"))


def command_line(options: Options) -> None:
    """Check; exit with 1 when there are errors and --strict."""
    if main(options).errors and options.strict:
        sys.exit(1)


if __name__ == "__main__":
    run_script(command_line, Options, "Look for what is wrong with a data set.")
