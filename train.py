"""Train a detector.

    python train.py --data glyphs.yaml --cfg yolov5-spd-n.yaml --hyp glyphs.yaml --img 320 --epochs 14

Writes checkpoints, results.csv, pictures, curves and TensorBoard events to PROJECT/NAME.
"""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from data.annotations import Annotations
from data.augment import Augmentation
from data.config import load_data_config, prepare
from data.loader import Batch, Loader, make_loader
from data.tiling import dataset_kind, typical_scale
from models.summary import parameters
from models.yolo import Model
from utils.assemble import fit_model_anchors, freeze, make_loss
from utils.checkpoint import DETECT
from utils.detection_log import DetectionLog
from utils.engine import Detector, NmsSettings, Predictor, image_weights
from utils.hyp import Hyp, load_hyp
from utils.lift import start_strided
from utils.loss import DetectionLoss
from utils.options import InputError, option, run_script
from utils.resume import fingerprint
from utils.run import Checkpoint, Task, TrainingRun, run_training
from utils.run_options import RunOptions
from utils.runs import CACHE, StopSignals, build_from_weights, read_split, scan_progress, start_logging, start_model
from utils.tiles import TiledPredictor, Tiling
from utils.validation import FITNESS, Report, parse_fitness, validate

VALIDATION = NmsSettings(conf=0.001, iou=0.6, max_det=300, multi_label=True)


@dataclass
class Options(RunOptions):
    """Command line of train.py; a field is a flag."""

    data: str = option("data/coco128.yaml", "data YAML, also by its name in data/")
    cfg: str = option("", "model YAML, also by its name in models/; empty takes the checkpoint's")
    hyp: str = option("hyp.scratch-low.yaml", "recipe, also by its name in data/hyps/")
    tile: int | None = option(None, "train and validate on tiles of so many pixels, cut from large images", least=32)
    rect: bool = option(False, "batches of like shapes, without mosaic")
    noautoanchor: bool = option(False, "keep the model's anchors whatever the boxes")
    cache: str | None = option(None, "keep resized images in memory or on disk", choices=("ram", "disk"), bare="ram")
    image_weights: bool = option(False, "draw images with rare and badly found classes more often")
    multi_scale: bool = option(False, "vary the image size from batch to batch by half")
    single_cls: bool = option(False, "treat all classes as one")
    sync_bn: bool = option(False, "of YOLOv5's commands; training runs in one process, so it has no effect")
    freeze: list[str] = option(["0"], "rows to freeze: backbone, one number for the first so many, or those rows")
    fitness: str = option(FITNESS, "figures whose sum chooses best.pt, such as AP_S alone")
    evolve: int | None = option(None, "trials of a search for a better recipe; needs Optuna", bare=300, least=1)


def run(**options: object) -> Report | None:
    """Train from Python, with the command line's options as arguments; returns the best epoch's validation."""
    return main(Options(**options))  # type: ignore[arg-type]


def main(options: Options) -> Report | None:
    """Train as the options say; a search for a recipe returns nothing, its results are files."""
    logger = start_logging()
    if options.sync_bn:
        logger.warning("--sync-bn: has no effect, as training runs in one process")
    if options.tile and (options.rect or options.image_weights):
        raise InputError("--tile: not together with --rect or --image-weights, which are about whole images")
    if options.evolve is not None:
        from utils.search import evolve  # noqa: PLC0415 (needs Optuna, which nothing else does)

        with StopSignals() as signals:
            evolve(options, lambda own: Training(own, None, signals))
        return None
    return run_training(Training, options)


class Training(TrainingRun[Options, Hyp, Model, Batch, Report]):
    """The training of a detector."""

    task = Task(DETECT, "train.py", Hyp, load_hyp, parse_fitness, build_from_weights)

    def read_data(self) -> dict[str, Any]:
        """Read both splits' tables; returns their fingerprints."""
        config = load_data_config(self.options.data)
        prepare(config)
        tables = [read_split(config, split) for split in ("train", "val")]
        if self.options.single_cls:
            tables = [table.as_single_class() for table in tables]
        self.train_table, self.val_table = tables
        self.average_precision = [0.0] * len(self.train_table.names)
        return {"train": fingerprint(self.train_table), "val": fingerprint(self.val_table)}

    def make_model(self, checkpoint: Checkpoint | None) -> Model:
        """Build it from the checkpoint to resume, from `--cfg` or from `--weights`."""
        names = self.train_table.names
        anchors = round(self.hyp.anchors) if self.hyp.anchors else None
        if checkpoint is not None:
            model = Model(checkpoint["config"], names=names, source=str(self.options.resume))
        else:
            model, report = start_model(self.options.weights, self.options.cfg, names, anchors)
            if report is not None:
                self.logger.info(f"{self.options.weights}: {report}")
            elif self.hyp.spd_init == "lifted":
                self.logger.info(f"spd_init lifted: rows {', '.join(map(str, start_strided(model)))} start strided")
        self.logger.info(f"{self.options.cfg or self.options.weights}: {parameters(model):,} parameters")
        return model

    def prepare_model(self, checkpoint: Checkpoint | None) -> None:
        """Fit the anchors and freeze rows."""
        options = self.options
        if not options.noautoanchor and checkpoint is None:
            placeholders = isinstance(self.model.config["anchors"], int) and not options.weights
            boxes = self.train_table.wh_at(self.size, options.tile)
            fit_model_anchors(self.model, boxes, self.hyp.anchor_t, always=placeholders)
        freeze(self.model, options.freeze)

    def make_loader(self) -> Loader[Batch]:
        """The training images, augmented."""
        return self._make_loader(self.train_table, train=True)

    def _make_loader(self, table: Annotations, *, train: bool) -> Loader[Batch]:
        options = self.options
        wanted = {field.name: getattr(self.hyp, field.name) for field in fields(Augmentation)}
        kind = dataset_kind(options.tile, visible=self.hyp.tile_visible, empty=self.hyp.tile_empty, train=train)
        with scan_progress(f"--cache {options.cache}") as show:
            dataset = kind(
                table,
                self.size,
                stride=self.model.max_stride,
                augmentation=Augmentation(**wanted) if train else None,
                rect=options.rect or not train,
                cache=options.cache,
                cache_folder=CACHE / "images",
                progress=show,
            )
        batch_size = self.batch_size if train else 1 if options.tile else self.batch_size * 2
        return make_loader(dataset, batch_size=batch_size, workers=options.workers, seed=options.seed, train=train)

    @cached_property
    def val_loader(self) -> Loader[Batch]:
        """The validation images, letterboxed."""
        return self._make_loader(self.val_table, train=False)

    def make_criterion(self) -> DetectionLoss:
        """The detection loss that the recipe asks for."""
        self.criterion = make_loss(self.model, self.hyp, self.train_table, self.size).to(self.device)
        return self.criterion

    def trainer_settings(self) -> dict[str, Any]:
        """Let image sizes vary if asked."""
        return {"multi_scale": self.options.multi_scale}

    def make_log(self) -> DetectionLog:
        """Of the training table."""
        plots = not self.options.noplots
        return DetectionLog(self.folder, self.train_table, plots=plots, first_epoch=self.start.epoch)

    def validate(self, model: Model | None = None) -> Report:
        """Detect in the validation images, in tiles if asked, and measure."""
        plain = Predictor(model or self.trainer.ema.model, self.device, settings=VALIDATION, folded=self.options.fold)
        tile, count = self.options.tile, self.batch_size * 2
        detector: Detector = TiledPredictor(plain, Tiling(tile, batch_size=count), self.size) if tile else plain
        criterion = None if tile else self.criterion  # boxes merged from tiles are in no map
        pictures = None if self.options.noplots else self.folder
        return validate(detector, self.val_loader, self.val_table, criterion=criterion, pictures=pictures)

    def image_name(self, index: int) -> str:
        """Its file's."""
        return self.train_table.paths[index].name

    def image_weights(self) -> NDArray[Any] | None:
        """More for images of rare and badly found classes, if asked."""
        if not self.options.image_weights:
            return None
        return image_weights(self.train_table.classes, self.train_table.starts, self.average_precision)

    def note(self, report: Report) -> None:
        """Keep each class's AP."""
        self.average_precision = [row.figures["AP"] for row in report.metrics.per_class]

    def restored(self, checkpoint: Checkpoint) -> None:
        """Take up the anchors, which may have been fitted, and each class's AP."""
        self.criterion.anchors.copy_(self.model.head.anchors)
        self.average_precision = checkpoint["best"]["average_precision"]

    def best_state(self) -> dict[str, Any]:
        """Each class's AP."""
        return {"average_precision": self.average_precision}

    def state(self) -> dict[str, Any]:
        """The scale at which the images are shown."""
        return {"scale": typical_scale(self.train_table, self.size, self.options.tile)}


if __name__ == "__main__":
    run_script(main, Options, "Train a detector.")
