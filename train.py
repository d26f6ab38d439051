"""Train a detector.

    python train.py --data glyphs.yaml --cfg yolov5-spd-n.yaml --hyp glyphs.yaml --img 320 --epochs 14

Writes checkpoints, results.csv, pictures, curves and TensorBoard events to PROJECT/NAME.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from data.annotations import Annotations
from data.augment import Augmentation
from data.config import load_data_config, prepare
from data.loader import Loader, LoaderError, make_loader
from data.tiling import dataset_kind, typical_scale
from models.fold import fold
from models.summary import parameters
from models.yolo import Model
from utils.assemble import fit_model_anchors, freeze, make_loss
from utils.autobatch import largest_batch
from utils.checkpoint import load_checkpoint, read_weights, rng_state, save_checkpoint, strip
from utils.engine import Detector, NmsSettings, NonFiniteLossError, Place, Predictor, Trainer, find_amp, image_weights
from utils.hyp import OPTIMIZERS, Hyp, load_hyp
from utils.lift import start_strided
from utils.optim import EMA, EarlyStopping, Schedule, make_optimizer
from utils.options import InputError, Interrupted, Ranged, from_mapping, option, run_script
from utils.resume import find_last, fingerprint, refuse_changed_data, restore, resumed_options, training_state
from utils.run_log import RunLog
from utils.runs import (
    CACHE,
    StopSignals,
    build_from_weights,
    check_image_size,
    make_run_folder,
    read_split,
    scan_progress,
    seed_everything,
    start_logging,
    start_model,
)
from utils.tiles import TiledPredictor, Tiling
from utils.upstream import select_device
from utils.validation import FITNESS, Report, parse_fitness, validate

VALIDATION = NmsSettings(conf=0.001, iou=0.6, max_det=300, multi_label=True)


@dataclass
class Options(Ranged):
    """Command line of train.py; a field is a flag."""

    weights: str = option("", "checkpoint to start from; empty trains from scratch")
    cfg: str = option("", "model YAML, also by its name in models/; empty takes the checkpoint's")
    data: str = option("data/coco128.yaml", "data YAML, also by its name in data/")
    hyp: str = option("hyp.scratch-low.yaml", "recipe, also by its name in data/hyps/")
    epochs: int = option(100, "passes over the training images", least=1)
    batch_size: int = option(16, "images in a batch; -1 takes what fits in the GPU's memory", aliases=("--batch",))
    imgsz: int = option(640, "image size in pixels, of the longer side", aliases=("--img", "--img-size"), least=1)
    tile: int | None = option(None, "train and validate on tiles of so many pixels, cut from large images", least=32)
    rect: bool = option(False, "batches of like shapes, without mosaic")
    resume: str | None = option(None, "continue a run from its last.pt, the newest by default", bare="newest")
    nosave: bool = option(False, "keep the last checkpoint only")
    noval: bool = option(False, "validate after the last epoch only")
    noautoanchor: bool = option(False, "keep the model's anchors whatever the boxes")
    noplots: bool = option(False, "write no pictures")
    cache: str | None = option(None, "keep resized images in memory or on disk", choices=("ram", "disk"), bare="ram")
    image_weights: bool = option(False, "draw images with rare and badly found classes more often")
    device: str = option("", "cpu, or a GPU's number; empty chooses")
    multi_scale: bool = option(False, "vary the image size from batch to batch by half")
    single_cls: bool = option(False, "treat all classes as one")
    optimizer: str | None = option(None, "SGD, Adam or AdamW; the recipe's when not given", choices=OPTIMIZERS)
    sync_bn: bool = option(False, "batch statistics over all processes (training runs in one process: no effect)")
    workers: int = option(8, "processes that load images, no more than there are cores", least=0)
    project: str = option("runs/train", "folder of runs")
    name: str = option("exp", "name of the run")
    exist_ok: bool = option(False, "write into an existing run's folder")
    cos_lr: bool = option(False, "cosine learning-rate schedule, not linear")
    label_smoothing: float | None = option(
        None, "share taken from the true class; the recipe's when not given", least=0, most=1
    )
    patience: int = option(100, "epochs without improvement before stopping; 0 never stops", least=0)
    freeze: list[str] = option(["0"], "rows to freeze: backbone, one number for the first so many, or those rows")
    save_period: int = option(-1, "keep a checkpoint every so many epochs")
    save_interval: float = option(0, "minutes between checkpoints within an epoch; 0 saves at its end only", least=0)
    fitness: str = option(FITNESS, "figures whose sum chooses best.pt, such as AP_S alone")
    seed: int = option(0, "seed of everything random", least=0)
    amp: bool = option(True, "reduced precision where the hardware has it")
    fold: bool = option(True, "run space-to-depth and the convolution after it in one step, exactly")
    compile: bool = option(False, "let torch.compile make kernels; takes minutes, then saves time")


def run(**options: object) -> Report:
    """Train from Python, with the command line's options as arguments; returns the best epoch's validation."""
    return main(Options(**options))  # type: ignore[arg-type]


def main(options: Options) -> Report:
    """Train as the options say."""
    start_logging()
    if options.tile and (options.rect or options.image_weights):
        raise InputError("--tile: not together with --rect or --image-weights, which are about whole images")
    checkpoint = None
    if options.resume:
        path = find_last(options.resume)
        checkpoint = load_checkpoint(path)
        options = resumed_options(options, checkpoint, path)
    seed_everything(options.seed)
    with StopSignals() as signals:
        return Training(options, checkpoint, signals).run()


class Training:
    """One run: built from the options before anything is written, then trained."""

    def __init__(self, options: Options, checkpoint: dict[str, Any] | None, signals: StopSignals) -> None:
        self.logger = logging.getLogger("yolov5-spd")
        self.device = select_device(options.device)
        self.hyp = self._recipe(options, checkpoint)
        self.options = options
        self.signals = signals
        self.fitness = parse_fitness(options.fitness)
        self.train_table, self.val_table = self._read_data()
        self.data = {"train": fingerprint(self.train_table), "val": fingerprint(self.val_table)}
        self.model = self._make_model(checkpoint).to(self.device).to(memory_format=torch.channels_last)
        self.size = check_image_size(options.imgsz, self.model.max_stride)
        if not options.noautoanchor and checkpoint is None:
            placeholders = isinstance(self.model.config["anchors"], int) and not options.weights
            boxes = self.train_table.wh_at(self.size, options.tile)
            fit_model_anchors(self.model, boxes, self.hyp.anchor_t, always=placeholders)
        if options.fold:
            fold(self.model)
        freeze(self.model, options.freeze)
        self.batch_size = self._choose_batch_size()
        self.loader = self._make_loader(self.train_table, train=True)
        self.trainer = self._make_trainer()
        self.stopper = EarlyStopping(options.patience)
        self.average_precision = [0.0] * len(self.train_table.names)
        self.start = Place()
        self.saved_best: int | None = None  # epoch of best.pt
        if checkpoint is not None:
            self._restore(checkpoint)
        self.reached: Callable[[], Place] = lambda: self.start
        self.saved_at = time.monotonic()
        self.folder = make_run_folder(options.project, options.name, exist_ok=options.exist_ok, below="weights")
        self.weights_folder = self.folder / "weights"
        self.best = self.weights_folder / "best.pt"
        if self.saved_best is None:
            self.best.unlink(missing_ok=True)  # of an earlier run in this folder
        self.log = RunLog(self.folder, plots=not options.noplots, first_epoch=self.start.epoch)

    @staticmethod
    def _recipe(options: Options, checkpoint: dict[str, Any] | None) -> Hyp:
        if checkpoint is not None:
            return from_mapping(Hyp, checkpoint["hyp"], f"{options.resume}: hyp")
        hyp = load_hyp(options.hyp)
        if options.label_smoothing is not None:
            hyp = replace(hyp, label_smoothing=options.label_smoothing)
        return replace(hyp, optimizer=options.optimizer or hyp.optimizer or "SGD")

    def _read_data(self) -> tuple[Annotations, Annotations]:
        config = load_data_config(self.options.data)
        prepare(config)
        tables = read_split(config, "train"), read_split(config, "val")
        return (tables[0].as_single_class(), tables[1].as_single_class()) if self.options.single_cls else tables

    def _make_model(self, checkpoint: dict[str, Any] | None) -> Model:
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

    def _choose_batch_size(self) -> int:
        if self.options.batch_size == -1:
            chosen = largest_batch(self.model, self.size, self.device, self.amp)
            self.logger.info(f"--batch-size -1: {chosen}")
            return chosen
        if self.options.batch_size < 1:
            raise InputError(f"--batch-size {self.options.batch_size}: expected 1 or more, or -1")
        return self.options.batch_size

    @cached_property
    def amp(self) -> torch.dtype | None:
        """Precision of the forward pass in training."""
        return find_amp(self.device) if self.options.amp else None

    def _make_loader(self, table: Annotations, *, train: bool) -> Loader:
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
    def val_loader(self) -> Loader:
        """The validation images, letterboxed."""
        return self._make_loader(self.val_table, train=False)

    def _make_trainer(self) -> Trainer:
        options, hyp, model = self.options, self.hyp, self.model
        assert hyp.optimizer is not None
        return Trainer(
            model=model,
            ema=EMA(model, tau=hyp.ema_tau),
            criterion=make_loss(model, hyp, self.train_table, self.size).to(self.device),
            optimizer=make_optimizer(model, hyp.optimizer, hyp, self.batch_size),
            schedule=Schedule(hyp, options.epochs, len(self.loader), self.batch_size, cosine=options.cos_lr),
            scaler=torch.amp.GradScaler(self.device.type, enabled=self.amp is torch.float16),
            device=self.device,
            amp=self.amp,
            multi_scale=options.multi_scale,
            compiled=options.compile,
            seed=options.seed,
        )

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        """Continue where the checkpoint was written, unless the data are others now or nothing is left to do."""
        options = self.options
        for split, found in self.data.items():
            refuse_changed_data(checkpoint["data"][split], found, f"{options.data}: {split}")
        self.start = restore(self.trainer, checkpoint)
        best = checkpoint["best"]
        self.stopper.best, self.stopper.best_epoch = best["fitness"], best["epoch"]
        self.saved_best, self.average_precision = best["saved"], best["average_precision"]
        planned = checkpoint["options"]["epochs"]
        if options.epochs <= self.start.epoch:
            raise InputError(
                f"--resume {options.resume}: {self.start.epoch} epochs are done; --epochs with a larger number goes on"
            )
        if options.epochs != planned:
            self.logger.info(f"{options.epochs} epochs, not {planned}: learning rates follow the new length from here")

    def run(self) -> Report:
        """Train all epochs, then validate the best one; returns that validation."""
        self.log.settings(opt=asdict(self.options), hyp=asdict(self.hyp))
        if self.start == Place():
            self.log.labels(self.train_table)
            self.log.graph(self.model, self.size)
        started = time.perf_counter()
        self.logger.info(f"training {self.options.epochs} epochs at {self.size} px in {self.folder}")
        place = self.start
        while place.epoch < self.options.epochs:
            if self._epoch(place):
                self.logger.info(f"no improvement in {self.options.patience} epochs: stopped")
                break
            place = Place(place.epoch + 1)
        self.logger.info(f"{(time.perf_counter() - started) / 60:.1f} minutes of training")
        return self._finish()

    def _epoch(self, place: Place) -> bool:
        """Train and validate; when something stops it, save what was reached; returns whether to stop early."""
        try:
            try:
                losses = self._train(place)
                self.signals.check()
                return self._conclude(place.epoch, losses)
            except (Interrupted, LoaderError):
                self._save(self.reached())
                self.logger.info(f"saved; train.py --resume {self.folder} goes on from here")
                raise
        except NonFiniteLossError as error:
            raise self._explained(error, place.epoch) from error

    def _train(self, place: Place) -> dict[str, float]:
        """Train what is left of an epoch; returns its mean losses."""
        weights = None
        if self.options.image_weights:
            weights = image_weights(self.train_table.classes, self.train_table.starts, self.average_precision)
        self.loader.set_epoch(place.epoch, weights, first=place.batch)
        draw = self.log.batch_drawer(self.train_table) if place.epoch == 0 else None
        self.reached = lambda: place
        with self.signals.deferred():
            return self.trainer.train_one_epoch(self.loader, place, on_batch=draw, on_step=self._after_step)

    def _after_step(self, reached: Callable[[], Place]) -> None:
        """Stop if a signal has come, and save if it is time."""
        self.reached = reached
        self.signals.check()
        interval = 60 * self.options.save_interval
        if interval and time.monotonic() - self.saved_at >= interval:
            self._save(reached())

    def _conclude(self, epoch: int, losses: dict[str, float]) -> bool:
        """Validate if due, log and save; returns whether to stop early."""
        options, trainer = self.options, self.trainer
        last = epoch == options.epochs - 1
        report = self._validate() if last or not options.noval else None
        self.log.epoch(epoch, losses, report, [group["lr"] for group in trainer.optimizer.param_groups])
        improved, stop = False, False
        if report is not None:
            self.logger.info("\n".join(report.table().splitlines()[:2]))
            self.average_precision = [row.figures["AP"] for row in report.metrics.per_class]
            fitness = report.fitness(self.fitness)
            if math.isnan(fitness):
                self.logger.warning(f"--fitness {options.fitness}: the validation images give no such figure")
            improved = self.stopper.improves(fitness, epoch)
            stop = self.stopper.exhausted(epoch)
        if not options.nosave or last or stop:
            is_best = improved or options.nosave or ((last or stop) and self.saved_best is None)
            self._save(Place(epoch + 1), is_best=is_best)
        return stop

    def _explained(self, error: NonFiniteLossError, epoch: int) -> InputError:
        """Draw the batch that spoilt the loss, and tell which images were in it."""
        batch = self.loader.batch(error.number)
        names = ", ".join(self.train_table.paths[index].name for index in batch.indices)
        picture = self.log.debug_batch(batch, self.train_table, f"epoch{epoch}_batch{error.number}")
        last = self.weights_folder / "last.pt"
        kept = f"; {last} is from before" if last.is_file() else ""
        return InputError(
            f"epoch {epoch + 1}, batch {error.number + 1}: {error} with {names} ({picture}){kept}; a lower lr0 or"
            " --no-amp may help"
        )

    def _validate(self, model: Model | None = None) -> Report:
        plain = Predictor(model or self.trainer.ema.model, self.device, settings=VALIDATION, folded=self.options.fold)
        tile, count = self.options.tile, self.batch_size * 2
        detector: Detector = TiledPredictor(plain, Tiling(tile, batch_size=count), self.size) if tile else plain
        criterion = None if tile else self.trainer.criterion  # boxes merged from tiles are in no map
        pictures = None if self.options.noplots else self.folder
        return validate(detector, self.val_loader, self.val_table, criterion=criterion, pictures=pictures)

    def _save(self, place: Place, *, is_best: bool = False) -> None:
        """Write last.pt, best.pt if these weights are the best so far, and the periodic checkpoint when due."""
        epoch = place.epoch - 1  # the one concluded
        self.saved_best = epoch if is_best else self.saved_best
        content = training_state(self.trainer, place) | {
            "rng": rng_state(),
            "data": self.data,
            "best": {
                "fitness": self.stopper.best,
                "epoch": self.stopper.best_epoch,
                "saved": self.saved_best,
                "average_precision": self.average_precision,
            },
            "options": asdict(self.options),
            "hyp": asdict(self.hyp),
            "scale": typical_scale(self.train_table, self.size, self.options.tile),
            "versions": {"torch": str(torch.__version__)},
        }
        if is_best:  # before last.pt, which says that it is there
            save_checkpoint(self.best, strip(content))
        save_checkpoint(self.weights_folder / "last.pt", content)
        self.saved_at = time.monotonic()
        period = self.options.save_period
        if period > 0 and place.batch == 0 and place.epoch % period == 0:
            save_checkpoint(self.weights_folder / f"epoch{epoch}.pt", content)

    def _finish(self) -> Report:
        """Validate best.pt as its users will have it, and draw what the run looked like."""
        report = self._validate(build_from_weights(read_weights(self.best)))
        assert self.saved_best is not None
        self.logger.info(f"best.pt, of epoch {self.saved_best + 1}:\n{report.table(per_class=True)}")
        title = f"best.pt of {self.folder.name} on {Path(self.options.data).stem}, epoch {self.saved_best + 1}"
        self.log.finish(report, asdict(self.options), title=title)
        self.logger.info(f"results in {self.folder}")
        return report


if __name__ == "__main__":
    run_script(main, Options, "Train a detector.")
