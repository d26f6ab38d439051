"""Train a detector.

    python train.py --data glyphs.yaml --cfg yolov5-spd-n.yaml --hyp glyphs.yaml --img 320 --epochs 14

Writes checkpoints, results.csv, pictures, curves and TensorBoard events to PROJECT/NAME.
"""

import logging
import time
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.annotations import Annotations, read_annotations
from data.augment import Augmentation
from data.config import load_data_config, prepare
from data.loader import Loader, make_loader
from data.tiling import dataset_kind, image_scales, typical_scale
from models.fold import fold
from models.summary import parameters
from models.yolo import Model
from utils.anchors import fit_anchors
from utils.autobatch import largest_batch
from utils.checkpoint import load_checkpoint, read_weights, restore_rng, rng_state, save_checkpoint, strip
from utils.engine import Detector, NmsSettings, Predictor, Trainer, find_amp, image_weights
from utils.hyp import OPTIMIZERS, Hyp, load_hyp
from utils.lift import start_strided
from utils.loss import DetectionLoss
from utils.optim import EMA, EarlyStopping, Schedule, make_optimizer
from utils.options import InputError, Ranged, from_mapping, option, run_script
from utils.run_log import RunLog
from utils.runs import (
    CACHE,
    build_from_weights,
    check_image_size,
    find_last,
    make_run_folder,
    scan_progress,
    seed_everything,
    start_logging,
    start_model,
)
from utils.tiles import TiledPredictor, Tiling
from utils.upstream import select_device
from utils.validation import Report, validate, write_report

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
    freeze: list[int] = option([0], "rows to freeze: one number is the first so many, several are those rows", least=0)
    save_period: int = option(-1, "keep a checkpoint every so many epochs")
    seed: int = option(0, "seed of everything random", least=0)
    amp: bool = option(True, "reduced precision where the hardware has it")
    fold: bool = option(True, "run space-to-depth and the convolution after it in one step, exactly")


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
        options = _resumed_options(options, checkpoint, path)
    seed_everything(options.seed)
    return Training(options, checkpoint).run()


def _resumed_options(options: Options, checkpoint: dict[str, Any], path: Path) -> Options:
    """The run's own options, in its own folder."""
    if checkpoint["optimizer"] is None or checkpoint["options"] is None:
        raise InputError(f"{path}: holds a finished model, not a run to continue; use it as --weights")
    saved = from_mapping(Options, checkpoint["options"], f"{path}: options")
    return replace(
        saved, resume=str(path), project=str(path.parents[2]), name=path.parents[1].name, exist_ok=True,
        device=options.device,
    )  # fmt: skip


class Training:
    """One run: built from the options before anything is written, then trained."""

    def __init__(self, options: Options, checkpoint: dict[str, Any] | None) -> None:
        self.logger = logging.getLogger("yolov5-spd")
        self.device = select_device(options.device)
        self.hyp = self._recipe(options, checkpoint)
        self.options = options
        self.train_table, self.val_table = self._read_data()
        self.model = self._make_model(checkpoint).to(self.device).to(memory_format=torch.channels_last)
        self.size = check_image_size(options.imgsz, self.model.max_stride)
        if not options.noautoanchor and checkpoint is None:
            self._fit_anchors()
        if options.fold:
            fold(self.model)
        self._freeze()
        self.batch_size = self._choose_batch_size()
        self.loader = self._make_loader(self.train_table, train=True)
        self.trainer = self._make_trainer()
        self.stopper = EarlyStopping(options.patience)
        self.average_precision = [0.0] * len(self.train_table.names)
        self.start = 0
        self.saved_best: int | None = None  # epoch of best.pt
        if checkpoint is not None:
            self._restore(checkpoint)
        self.folder = make_run_folder(options.project, options.name, exist_ok=options.exist_ok, below="weights")
        self.weights_folder = self.folder / "weights"
        self.best = self.weights_folder / "best.pt"
        if self.saved_best is None:
            self.best.unlink(missing_ok=True)  # of an earlier run in this folder
        self.log = RunLog(self.folder, plots=not options.noplots, first_epoch=self.start)

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
        tables = []
        for split in ("train", "val"):
            with scan_progress(f"{split}: labels") as show:
                table = read_annotations(config, split, cache=CACHE, progress=show)
            plain = int((~table.crowd).sum())
            empty = int((table.counts == 0).sum())
            self.logger.info(f"{split}: {len(table)} images, {plain} labels, {empty} images without")
            for line in table.problems[:10]:
                self.logger.warning(line)
            if len(table.problems) > 10:
                self.logger.warning(f"... and {len(table.problems) - 10} more of {split}")
            tables.append(table.as_single_class() if self.options.single_cls else table)
        return tables[0], tables[1]

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

    def _fit_anchors(self) -> None:
        """Fit the anchors to the boxes' sizes in training images."""
        table, head = self.train_table, self.model.head
        boxes = (
            table.boxes[:, 2:] * np.repeat(image_scales(table, self.size, self.options.tile), table.counts)[:, None]
        )[~table.crowd]
        given = head.anchors_in_pixels().cpu().double().numpy()
        placeholders = isinstance(self.model.config["anchors"], int) and not self.options.weights
        usable = boxes[(boxes > 0).all(1)]
        fitted, before, after = fit_anchors(usable, given, self.hyp.anchor_t, always=placeholders)
        if fitted is given:
            self.logger.info(f"anchors: {before}; kept")
            return
        self.logger.info(f"anchors: {before}; fitted anew: {after}")
        self.model.head.set_anchors(torch.from_numpy(fitted))
        self.model.config["anchors"] = fitted.reshape(len(fitted), -1).round(2).tolist()

    def _freeze(self) -> None:
        """Stop the gradients of the rows that --freeze names."""
        wanted, count = self.options.freeze, len(self.model.model)
        rows = range(wanted[0]) if len(wanted) == 1 else wanted
        if any(row >= count for row in rows) or len(set(rows)) == count:
            raise InputError(f"--freeze {wanted}: the model has rows 0 to {count - 1}, and one must be left to learn")
        for row in rows:
            self.model.model[row].requires_grad_(False)
        if rows:
            self.logger.info(f"frozen rows: {', '.join(map(str, rows))}")

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
        head = model.head
        gains = hyp.scaled_gains(head.classes, len(head.strides), self.size)
        criterion = DetectionLoss(
            head.anchors,
            head.classes,
            gains,
            anchor_t=hyp.anchor_t,
            cls_pw=hyp.cls_pw,
            obj_pw=hyp.obj_pw,
            fl_gamma=hyp.fl_gamma,
            label_smoothing=hyp.label_smoothing,
        ).to(self.device)
        assert hyp.optimizer is not None
        return Trainer(
            model=model,
            ema=EMA(model, tau=hyp.ema_tau),
            criterion=criterion,
            optimizer=make_optimizer(model, hyp.optimizer, hyp, self.batch_size),
            schedule=Schedule(hyp, options.epochs, len(self.loader), self.batch_size, cosine=options.cos_lr),
            scaler=torch.amp.GradScaler(self.device.type, enabled=self.amp is torch.float16),
            device=self.device,
            amp=self.amp,
            multi_scale=options.multi_scale,
            seed=options.seed,
        )

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        """Continue where the checkpoint was written."""
        trainer = self.trainer
        trainer.model.load_state_dict(checkpoint["model"])
        trainer.criterion.anchors.copy_(trainer.model.head.anchors)  # which AutoAnchor may have fitted
        trainer.ema.model.load_state_dict(checkpoint["ema"])
        trainer.ema.updates = checkpoint["updates"]
        trainer.optimizer.load_state_dict(checkpoint["optimizer"])
        if checkpoint["scaler"]:  # empty from a run in another precision
            trainer.scaler.load_state_dict(checkpoint["scaler"])
        restore_rng(checkpoint["rng"])
        best = checkpoint["best"]
        self.stopper.best, self.stopper.best_epoch = best["fitness"], best["epoch"]
        self.saved_best, self.average_precision = best["saved"], best["average_precision"]
        self.start = checkpoint["epoch"] + 1
        if self.start >= self.options.epochs:
            raise InputError(f"--resume {self.options.resume}: all {self.options.epochs} epochs are done")

    def run(self) -> Report:
        """Train all epochs, then validate the best one; returns that validation."""
        self.log.settings(opt=asdict(self.options), hyp=asdict(self.hyp))
        if self.start == 0:
            self.log.labels(self.train_table)
            self.log.graph(self.model, self.size)
        started = time.perf_counter()
        self.logger.info(f"training {self.options.epochs} epochs at {self.size} px in {self.folder}")
        for epoch in range(self.start, self.options.epochs):
            if self._epoch(epoch):
                self.logger.info(f"no improvement in {self.options.patience} epochs: stopped")
                break
        self.logger.info(f"{(time.perf_counter() - started) / 60:.1f} minutes of training")
        return self._finish()

    def _epoch(self, epoch: int) -> bool:
        """Train, validate if due, log and save; returns whether to stop early."""
        options, trainer = self.options, self.trainer
        weights = None
        if options.image_weights:
            weights = image_weights(self.train_table.classes, self.train_table.starts, self.average_precision)
        self.loader.set_epoch(epoch, weights)
        draw = self.log.batch_drawer(self.train_table) if epoch == 0 else None
        losses = trainer.train_one_epoch(self.loader, epoch, on_batch=draw)
        last = epoch == options.epochs - 1
        report = self._validate() if last or not options.noval else None
        self.log.epoch(epoch, losses, report, [group["lr"] for group in trainer.optimizer.param_groups])
        improved, stop = False, False
        if report is not None:
            self.logger.info("\n".join(report.table().splitlines()[:2]))
            self.average_precision = [row.AP for row in report.metrics.per_class]
            improved = self.stopper.improves(report.fitness, epoch)
            stop = self.stopper.exhausted(epoch)
        self._save(epoch, improved=improved, final=last or stop)
        return stop

    def _validate(self, model: Model | None = None) -> Report:
        plain = Predictor(model or self.trainer.ema.model, self.device, settings=VALIDATION, folded=self.options.fold)
        tile, count = self.options.tile, self.batch_size * 2
        detector: Detector = TiledPredictor(plain, Tiling(tile, batch_size=count), self.size) if tile else plain
        criterion = None if tile else self.trainer.criterion  # boxes merged from tiles are in no map
        pictures = None if self.options.noplots else self.folder
        return validate(detector, self.val_loader, self.val_table, criterion=criterion, pictures=pictures)

    def _save(self, epoch: int, *, improved: bool, final: bool) -> None:
        """Write last.pt, best.pt when this epoch is the best so far, and the periodic checkpoint when due."""
        trainer, options = self.trainer, self.options
        if options.nosave and not final:
            return
        is_best = improved or options.nosave or (final and self.saved_best is None)
        self.saved_best = epoch if is_best else self.saved_best
        content: dict[str, Any] = {
            "config": trainer.model.config,
            "names": trainer.model.names,
            "model": trainer.model.state_dict(),
            "ema": trainer.ema.model.state_dict(),
            "updates": trainer.ema.updates,
            "optimizer": trainer.optimizer.state_dict(),
            "scaler": trainer.scaler.state_dict(),
            "rng": rng_state(),
            "epoch": epoch,
            "best": {
                "fitness": self.stopper.best,
                "epoch": self.stopper.best_epoch,
                "saved": self.saved_best,
                "average_precision": self.average_precision,
            },
            "options": asdict(options),
            "hyp": asdict(self.hyp),
            "scale": typical_scale(self.train_table, self.size, options.tile),
            "versions": {"torch": str(torch.__version__)},
        }
        save_checkpoint(self.weights_folder / "last.pt", content)
        if is_best:
            save_checkpoint(self.best, strip(content))
        if options.save_period > 0 and (epoch + 1) % options.save_period == 0:
            save_checkpoint(self.weights_folder / f"epoch{epoch}.pt", content)

    def _finish(self) -> Report:
        """Validate best.pt as its users will have it, and draw what the run looked like."""
        report = self._validate(build_from_weights(read_weights(self.best)))
        assert self.saved_best is not None
        self.logger.info(f"best.pt, of epoch {self.saved_best + 1}:\n{report.table(per_class=True)}")
        write_report(report, self.folder, asdict(self.options), plots=not self.options.noplots)
        self.log.finish(self.options.epochs)
        self.logger.info(f"results in {self.folder}")
        return report


if __name__ == "__main__":
    run_script(main, Options, "Train a detector.")
