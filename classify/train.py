"""Train a classifier: ResNet-18 or ResNet-50, strided or with SPD-Conv.

    python classify/train.py --data glyphs --model resnet18_spd --epochs 2

Writes checkpoints, results.csv, pictures and TensorBoard events to PROJECT/NAME, and, of a set that has test images,
what best.pt makes of them to PROJECT/NAME/test.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script, Python looks for modules beside this file: look one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import hashlib
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, partial
from typing import Any

from data.class_dataset import ClassAugmentation, ClassBatch, ClassDataset, colour_statistics, make_class_loader
from data.class_images import ClassSplit
from data.class_sets import FOLDERS_RECIPE, SETS
from data.loader import Loader
from models.resnet import ARCHITECTURES, CLASSIFY, STEM_SIZES, ResNet, read_config
from models.summary import parameters
from utils.checkpoint import Weights, read_weights, refuse_other_task, transfer
from utils.class_hyp import ClassHyp, load_class_hyp
from utils.class_log import ClassLog
from utils.class_report import write_class_report
from utils.classification import (
    FIGURES,
    FITNESS,
    SHRINK,
    ClassDataOptions,
    Classifier,
    ClassLoss,
    ClassReport,
    build_classifier,
    read_splits,
    refuse_shrink,
    validate_classes,
)
from utils.optim import accumulation
from utils.options import option, run_script
from utils.run import REPORT, Checkpoint, Task, TrainingRun, run_training
from utils.run_options import RunOptions
from utils.runs import check_image_size, scan_progress, start_logging
from utils.validation import parse_fitness


@dataclass
class Options(ClassDataOptions, RunOptions):
    """Command line of classify/train.py; a field is a flag."""

    model: str = option("resnet18_spd", "network to train", choices=tuple(ARCHITECTURES))
    hyp: str = option("", "recipe, also by its name in data/hyps/; that of the data set when not given")
    batch_size: int = option(64, "images in a batch; -1 takes what fits in the GPU's memory", aliases=("--batch",))
    imgsz: int = option(
        0, "side of the images in pixels; 0 takes that of the data set", aliases=("--img", "--img-size"), least=0
    )
    stem: str = option("small", "first layers: for images of 32 or 64 px, or for large ones", choices=(*STEM_SIZES,))
    spd_shortcut: bool = option(False, "space-to-depth in the shortcuts too, where the authors kept strides")
    shrink: int = option(1, SHRINK, least=1)
    project: str = option("runs/classify/train", "folder of runs")
    fitness: str = option(FITNESS, "figures whose sum chooses best.pt")

    def __post_init__(self) -> None:
        """Take what suits the data set where nothing was chosen."""
        super().__post_init__()
        known = SETS.get(self.data)
        self.hyp = self.hyp or (known.recipe if known else FOLDERS_RECIPE)
        self.imgsz = self.imgsz or (
            STEM_SIZES.get(self.stem, 0) if known is None or self.stem != "small" else known.imgsz
        )


def run(**options: object) -> ClassReport:
    """Train from Python, with the command line's options as arguments; returns the best epoch's validation."""
    return main(Options(**options))  # type: ignore[arg-type]


def main(options: Options) -> ClassReport:
    """Train as the options say."""
    start_logging()
    return run_training(ClassTraining, options)


class ClassTraining(TrainingRun[Options, ClassHyp, ResNet, ClassBatch, ClassReport]):
    """The training of a classifier."""

    task = Task(
        CLASSIFY,
        "classify/train.py",
        ClassHyp,
        load_class_hyp,
        partial(parse_fitness, known=FIGURES, example=FITNESS),
        build_classifier,
    )

    def read_data(self) -> dict[str, Any]:
        """Read the set; returns the fingerprints of its training and validation images."""
        self.splits = read_splits(self.options)
        return {name: fingerprint(self.splits[name]) for name in ("train", "val")}

    def make_model(self, checkpoint: Checkpoint | None) -> ResNet:
        """Build it from the checkpoint to resume, or as the options say, with the weights of `--weights`."""
        options, names = self.options, self.splits["train"].names
        if checkpoint is not None:
            return ResNet(checkpoint["config"], names=names, source=str(options.resume))
        weights = read_weights(Path(options.weights)) if options.weights else None
        chosen = {"arch": options.model, "nc": len(names), "shrink": options.shrink}
        chosen |= {key: getattr(options, key) for key in ("stem", "spd_shortcut", "imgsz")}
        if weights is not None:
            refuse_other_task(weights.config, CLASSIFY, weights.source)
            trained = asdict(read_config(weights.config, str(weights.source)))
            given = {"arch" if name == "model" else name for name in options.given}
            chosen |= {key: trained[key] for key in {"arch", "stem", "spd_shortcut", "imgsz"} - given}
        config = read_config(chosen, "--model")
        size = check_image_size(config.imgsz, config.max_stride)
        refuse_shrink(size, options.shrink)
        self.options = replace(options, imgsz=size)
        model = ResNet(asdict(config) | {"imgsz": size} | self._colours(weights, size), names=names, source="--model")
        self.logger.info(f"{config.arch}: {parameters(model):,} parameters")
        if weights is not None:
            self.logger.info(f"{options.weights}: {transfer(model, weights)}")
        return model

    def _colours(self, weights: Weights | None, size: int) -> dict[str, list[float]]:
        """Mean and deviation of the recipe, else those that weights were trained with, else of the training images."""
        if self.hyp.mean:
            return {"mean": self.hyp.mean, "std": self.hyp.std}
        if weights is not None and any(weights.config.get("mean", ())):  # those of others may be unknown
            return {key: weights.config[key] for key in ("mean", "std")}
        with scan_progress("colours") as show:
            mean, std = colour_statistics(self.splits["train"], size, self.options.shrink, show)
        return {"mean": mean, "std": std}

    def make_loader(self) -> Loader[ClassBatch]:
        """The training images, augmented."""
        return self._make_loader("train")

    def _make_loader(self, name: str) -> Loader[ClassBatch]:
        options, train = self.options, name == "train"
        wanted = {field.name: getattr(self.hyp, field.name) for field in fields(ClassAugmentation)}
        augmentation = ClassAugmentation(**wanted) if train else None
        dataset = ClassDataset(self.splits[name], self.size, shrink=options.shrink, augmentation=augmentation)
        count = self.batch_size if train else self.batch_size * 2
        return make_class_loader(dataset, batch_size=count, workers=options.workers, seed=options.seed, train=train)

    @cached_property
    def val_loader(self) -> Loader[ClassBatch]:
        """The validation images as they are."""
        return self._make_loader("val")

    def make_criterion(self) -> ClassLoss:
        """Cross-entropy."""
        return ClassLoss(self.hyp.label_smoothing)

    def trainer_settings(self) -> dict[str, Any]:
        """Let a step follow the mean over a full batch, for which classifiers' learning rates are meant."""
        return {"loss_scale": 1 / (self.batch_size * accumulation(self.batch_size, self.hyp.nominal_batch))}

    def make_log(self) -> ClassLog:
        """Of the training images."""
        for name in ("metrics.json", REPORT):  # of an earlier run in this folder, perhaps on a set with test images
            (self.folder / "test" / name).unlink(missing_ok=True)
        plots = not self.options.noplots
        return ClassLog(self.folder, self.splits["train"], plots=plots, first_epoch=self.start.epoch)

    def validate(self, model: ResNet | None = None) -> ClassReport:
        """Classify the validation images and measure."""
        pictures = None if self.options.noplots else self.folder
        return self._measure("val", self.val_loader, model or self.trainer.ema.model, pictures)

    def _measure(self, name: str, loader: Loader[ClassBatch], model: ResNet, pictures: Path | None) -> ClassReport:
        classifier = Classifier(model, self.device, folded=self.options.fold)
        criterion = self.trainer.criterion
        return validate_classes(
            classifier, loader, self.splits[name], criterion=criterion, pictures=pictures, description=name
        )

    def finish(self, best: ResNet) -> ClassReport:
        """Look at the test images, which nothing was chosen by; returns the validation of the best model."""
        report = self.validate(best)
        if "test" in self.splits:
            folder, plots = self.folder / "test", not self.options.noplots
            folder.mkdir(exist_ok=True)
            test = self._measure("test", self._make_loader("test"), best, folder if plots else None)
            title = f"best.pt of {self.folder.name} on the test images of {Path(self.options.data).stem}"
            write_class_report(test, folder, asdict(self.options), title=title, plots=plots)
            self.logger.info(f"test:\n{test.table()}")
        return report

    def image_name(self, index: int) -> str:
        """As the split calls it."""
        return self.splits["train"].name(index)


def fingerprint(split: ClassSplit) -> dict[str, Any]:
    """What a run must find again of a split when it is resumed, wherever the data lie by then."""
    digest = hashlib.sha256(split.images.identity())
    for part in (split.labels, split.places):
        digest.update(part.tobytes())
    return {"classes": list(split.names), "number of images": len(split), "images": digest.hexdigest()[:16]}


if __name__ == "__main__":
    run_script(main, Options, "Train a classifier: ResNet-18 or ResNet-50, strided or with SPD-Conv.")
