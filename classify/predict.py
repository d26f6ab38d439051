"""Say what images, videos and streams show.

    python classify/predict.py --weights runs/classify/train/exp/weights/best.pt --source path/to/images

Writes predictions.csv, the images with their class drawn on them, and other forms if asked, to PROJECT/NAME.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script, Python looks for modules beside this file: look one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataclasses import dataclass

from data.frames import Source
from data.sources import open_source
from utils.class_prediction import Classification, GuessCsv, GuessJson, GuessTxt
from utils.classification import Classifier, ClassifierOptions, open_classifier, view
from utils.detection_files import Form, Output, Pictures
from utils.options import InputError, option, run_script
from utils.runs import StopSignals, exit_if_incomplete, make_run_folder, start_logging
from utils.upstream import progress, select_device


@dataclass
class Options(ClassifierOptions):
    """Command line of classify/predict.py; a field is a flag."""

    source: str = option("", "image, video, folder, pattern, .txt list of files, camera number or URL")
    batch_size: int = option(32, "a file's frames, or files, in a forward pass", aliases=("--batch",), least=1)
    save_txt: bool = option(False, "write a text for each image, a line 'confidence name' for each of five classes")
    save_json: bool = option(False, "write predictions.json")
    nosave: bool = option(False, "save no drawn images or videos")
    vid_stride: int = option(1, "take every so many frames of a video or stream", least=1)
    project: str = option("runs/classify/predict", "folder of runs")


def run(**options: object) -> Path:
    """Classify from Python, with the command line's options as arguments; returns the run's folder."""
    return main(Options(**options))[0]  # type: ignore[arg-type]


def main(options: Options) -> tuple[Path, Source]:
    """Classify as the options say; returns the run's folder, and the source with what could not be read."""
    logger = start_logging()
    if not options.weights:
        raise InputError("--weights: give the checkpoint to classify with")
    if not options.source:
        raise InputError("--source: give the images to classify")
    model = open_classifier(options.weights)
    size, shrink = view(model, options.imgsz, options.shrink)
    classifier = Classifier(model, select_device(options.device), half=options.half, folded=options.fold)
    with StopSignals(), open_source(options.source, vid_stride=options.vid_stride) as source:
        folder = make_run_folder(options.project, options.name, exist_ok=options.exist_ok)
        output = Output(model.names, _forms(folder, model.names, options))
        work = Classification(source, classifier, size, output, shrink, not options.nosave, options.batch_size)
        try:
            with output, work.pipeline() as results:
                for _ in progress(results, "classify", unit="frame"):
                    pass
        finally:  # a stream has no end but a signal
            logger.info(f"{output.frames} frames, {output.summary()}")
            logger.info(f"results in {folder}")
    return folder, source


def _forms(folder: Path, names: list[str], options: Options) -> list[Form]:
    """What is to be written."""
    forms: list[Form] = [GuessCsv(folder / "predictions.csv", names)]
    if options.save_txt:
        forms.append(GuessTxt(folder / "labels", names))
    if options.save_json:
        forms.append(GuessJson(folder / "predictions.json", names))
    if not options.nosave:
        forms.append(Pictures(folder))
    return forms


def command_line(options: Options) -> None:
    """Classify; exit with 1 when a part of the source could not be read, the rest being done."""
    exit_if_incomplete(main(options)[1])


if __name__ == "__main__":
    run_script(command_line, Options, "Say what images, videos and streams show.")
