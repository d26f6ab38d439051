"""One training from its options to its report, the same for every task: epochs, validation, checkpoints, an early end.

A task fills in what is its own: its data, its model, its loss, how it validates, and what its log shows.
"""

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from numpy.typing import NDArray

from data.loader import ImageBatch, Loader, LoaderError
from models.fold import fold
from models.network import Network
from utils.autobatch import largest_batch
from utils.checkpoint import (
    Weights,
    load_checkpoint,
    read_weights,
    refuse_other_task,
    rng_state,
    save_checkpoint,
    strip,
)
from utils.hyp import Recipe, to_recipe
from utils.optim import EMA, EarlyStopping, Schedule, make_optimizer
from utils.options import InputError, Interrupted
from utils.resume import find_last, refuse_changed_data, restore, resumed_options, training_state
from utils.run_log import RunLog
from utils.run_options import RunOptions
from utils.runs import StopSignals, check_image_size, make_run_folder, seed_everything
from utils.training import Criterion, NonFiniteLossError, Place, Trainer, find_amp
from utils.upstream import select_device

REPORT = "report.html"  # the last file that a run writes


class RunReport(Protocol):
    """What a run needs of a validation."""

    def fitness(self, weights: Mapping[str, float]) -> float:
        """The weighted sum of figures that the best epoch is chosen by; nan where there is nothing to measure."""

    def table(self, *, per_class: bool = False) -> str:
        """What the console shows, the most important in its first two lines."""


O = TypeVar("O", bound=RunOptions)  # noqa: E741
H = TypeVar("H", bound=Recipe)
M = TypeVar("M", bound=Network)
B = TypeVar("B", bound=ImageBatch)
R = TypeVar("R", bound=RunReport)
Checkpoint = dict[str, Any]


@dataclass(frozen=True)
class Task(Generic[H, M]):
    """What tells one task's training from another's before there are data."""

    name: str  # in checkpoints
    script: str  # in messages
    recipe: type[H]
    load_recipe: Callable[[str], H]
    parse_fitness: Callable[[str], dict[str, float]]
    rebuild: Callable[[Weights], M]


class TrainingRun(ABC, Generic[O, H, M, B, R]):
    """One run: built from the options before anything is written, then trained."""

    task: Task[H, M]

    def __init__(self, options: O, checkpoint: Checkpoint | None, signals: StopSignals) -> None:
        self.logger = logging.getLogger("yolov5-spd")
        self.device = select_device(options.device)
        self.hyp = self._recipe(options, checkpoint)
        self.options = options
        self.signals = signals
        self.fitness = self.task.parse_fitness(options.fitness)
        self.data = self.read_data()
        self.model = self.make_model(checkpoint).to(self.device).to(memory_format=torch.channels_last)
        self.size = check_image_size(self.options.imgsz, self.model.max_stride)
        self.prepare_model(checkpoint)
        if options.fold:
            fold(self.model)
        self.batch_size = self._choose_batch_size()
        self.loader = self.make_loader()
        self.trainer = self._make_trainer()
        self.stopper = EarlyStopping(options.patience)
        self.start = Place()
        self.saved_best: int | None = None  # epoch of best.pt
        self.stopped = False  # before its last epoch
        if checkpoint is not None:
            self._restore(checkpoint)
        self.reached: Callable[[], Place] = lambda: self.start
        self.saved_at = time.monotonic()

    @abstractmethod
    def read_data(self) -> dict[str, Any]:
        """Read the training and the validation split; returns each one's fingerprint."""

    @abstractmethod
    def make_model(self, checkpoint: Checkpoint | None) -> M:
        """Make the model to be trained."""

    def prepare_model(self, checkpoint: Checkpoint | None) -> None:
        """Do to the model, on its device, what the data or the options ask for."""

    @abstractmethod
    def make_loader(self) -> Loader[B]:
        """Make the loader of training batches."""

    @abstractmethod
    def make_criterion(self) -> Criterion:
        """Make the loss."""

    def trainer_settings(self) -> dict[str, Any]:
        """Further settings of the trainer."""
        return {}

    @abstractmethod
    def make_log(self) -> RunLog[B, R]:
        """Open the log in the run's folder."""

    @abstractmethod
    def validate(self, model: M | None = None) -> R:
        """Validate the average of the weights, or another model."""

    @abstractmethod
    def image_name(self, index: int) -> str:
        """What to call a training image."""

    def image_weights(self) -> NDArray[Any] | None:
        """How often each training image is drawn in the next epoch, if not once."""
        return None

    def note(self, report: R) -> None:
        """Keep of a validation what the next epoch needs."""

    def restored(self, checkpoint: Checkpoint) -> None:
        """Take up what else the checkpoint to go on from holds."""

    def state(self) -> dict[str, Any]:
        """Further entries of a checkpoint."""
        return {}

    def best_state(self) -> dict[str, Any]:
        """Further entries of a checkpoint's `best`."""
        return {}

    def finish(self, best: M) -> R:
        """Measure the best model as its users will have it; returns its validation."""
        return self.validate(best)

    def _recipe(self, options: O, checkpoint: Checkpoint | None) -> H:
        if checkpoint is not None:
            return to_recipe(self.task.recipe, checkpoint["hyp"], f"{options.resume}: hyp")
        hyp = self.task.load_recipe(options.hyp)
        if options.cos_lr and hyp.lr_steps:
            raise InputError(f"--cos-lr: has no effect, as {options.hyp} sets lr_steps")
        if options.label_smoothing is not None:
            hyp = replace(hyp, label_smoothing=options.label_smoothing)
        return replace(hyp, optimizer=options.optimizer or hyp.optimizer or "SGD")

    def _choose_batch_size(self) -> int:
        if self.options.batch_size == -1:
            chosen = largest_batch(self.model, self.size, self.device, self.amp)
            self.options = replace(self.options, batch_size=chosen)  # a resumed run has the same batches
            self.logger.info(f"--batch-size -1: {chosen}")
            return chosen
        if self.options.batch_size < 1:
            raise InputError(f"--batch-size {self.options.batch_size}: expected 1 or more, or -1")
        return self.options.batch_size

    @cached_property
    def amp(self) -> torch.dtype | None:
        """Precision of the forward pass in training."""
        return find_amp(self.device) if self.options.amp else None

    def _make_trainer(self) -> Trainer[M, B]:
        options, hyp, model = self.options, self.hyp, self.model
        assert hyp.optimizer is not None
        return Trainer(
            model=model,
            ema=EMA(model, decay=hyp.ema_decay, tau=hyp.ema_tau),
            criterion=self.make_criterion(),
            optimizer=make_optimizer(model, hyp.optimizer, hyp, self.batch_size),
            schedule=Schedule(hyp, options.epochs, len(self.loader), self.batch_size, cosine=options.cos_lr),
            scaler=torch.amp.GradScaler(self.device.type, enabled=self.amp is torch.float16),
            device=self.device,
            amp=self.amp,
            compiled=options.compile,
            seed=options.seed,
            **self.trainer_settings(),
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Continue where the checkpoint was written, unless the data are others now or nothing is left to do."""
        options = self.options
        try:
            self._take_up(checkpoint)
        except InputError:
            raise
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            told = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"--resume {options.resume}: holds no run that can be continued, {told:.200}") from error
        planned, done = checkpoint["options"]["epochs"], self.start.epoch
        if (self.stopped or options.epochs <= done) and (Path(options.project, options.name) / REPORT).is_file():
            how = "stopped early after" if self.stopped else "trained"
            more = "--epochs or --patience" if self.stopped else "--epochs"
            raise InputError(f"--resume {options.resume}: {how} {done} epochs; {more} with a larger number goes on")
        if options.epochs != planned:
            self.logger.info(f"{options.epochs} epochs, not {planned}: learning rates follow the new length from here")

    def _take_up(self, checkpoint: Checkpoint) -> None:
        """Set everything to what a checkpoint holds."""
        options, before = self.options, checkpoint["options"]
        for split, found in self.data.items():
            refuse_changed_data(checkpoint["data"][split], found, f"{options.data}: {split}")
        self.start = restore(self.trainer, checkpoint)
        best = checkpoint["best"]
        self.stopper.best, self.stopper.best_epoch = best["fitness"], best["epoch"]
        self.saved_best = best["saved"]
        same_end = (options.epochs, options.patience) == (before["epochs"], before["patience"])
        self.stopped = bool(best.get("stopped")) and same_end
        self.restored(checkpoint)

    def run(self, give_up: Callable[[int, float], bool] = lambda *_: False) -> R:
        """Train all epochs, unless `give_up` ends it after one, and validate the best; returns that validation."""
        self.give_up = give_up
        options = self.options
        self.folder = make_run_folder(options.project, options.name, exist_ok=options.exist_ok, below="weights")
        self.weights_folder = self.folder / "weights"
        self.best = self.weights_folder / "best.pt"
        if self.saved_best is None:
            self.best.unlink(missing_ok=True)  # of an earlier run in this folder
        (self.folder / REPORT).unlink(missing_ok=True)  # the run is finished once it is there
        self.log = self.make_log()
        self.log.settings(opt=asdict(options), hyp=asdict(self.hyp))
        if self.start == Place():
            self.log.labels()
            self.log.graph(self.model, self.size)
        started = time.perf_counter()
        self.logger.info(f"training {options.epochs} epochs at {self.size} px in {self.folder}")
        place = self.start
        while place.epoch < options.epochs and not self.stopped:
            self._epoch(place)
            place = Place(place.epoch + 1)
        if self.stopped:
            self.logger.info(f"stopped early: epoch {self.stopper.best_epoch + 1} was the best")
        self.logger.info(f"{(time.perf_counter() - started) / 60:.1f} minutes of training")
        return self._finish()

    def _epoch(self, place: Place) -> None:
        """Train and validate; when something stops it, save what was reached."""
        try:
            try:
                losses = self._train(place)
                self.signals.check()
                self._conclude(place.epoch, losses)
            except (Interrupted, LoaderError):
                self._save(self.reached())
                self.logger.info(f"saved; {self.task.script} --resume {self.folder} goes on from here")
                self.signals.check()  # a signal to all processes ends the loader's, too
                raise
        except NonFiniteLossError as error:
            raise self._explained(error, place.epoch) from error

    def _train(self, place: Place) -> dict[str, float]:
        """Train what is left of an epoch; returns its mean losses."""
        self.loader.set_epoch(place.epoch, self.image_weights(), first=place.batch)
        draw = self.log.batch_drawer() if place.epoch == 0 else None
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

    def _conclude(self, epoch: int, losses: dict[str, float]) -> None:
        """Validate if due, decide whether to stop early, log and save."""
        options, trainer = self.options, self.trainer
        last = epoch == options.epochs - 1
        report = self.validate() if last or not options.noval else None
        self.log.epoch(epoch, losses, report, [group["lr"] for group in trainer.optimizer.param_groups])
        improved = False
        if report is not None:
            self.logger.info("\n".join(report.table().splitlines()[:2]))
            self.note(report)
            fitness = report.fitness(self.fitness)
            if math.isnan(fitness):
                self.logger.warning(f"--fitness {options.fitness}: the validation images give no such figure")
            improved = self.stopper.improves(fitness, epoch)
            self.stopped = self.stopper.exhausted(epoch) or (not last and self.give_up(epoch, fitness))
        last = last or self.stopped
        if not options.nosave or last:
            is_best = improved or options.nosave or (last and self.saved_best is None)
            self._save(Place(epoch + 1), is_best=is_best)

    def _explained(self, error: NonFiniteLossError, epoch: int) -> InputError:
        """Draw the batch that spoilt the loss, and tell which images were in it."""
        batch = self.loader.batch(error.number)
        names = ", ".join(self.image_name(index) for index in batch.indices)
        picture = self.log.debug_batch(batch, f"epoch{epoch}_batch{error.number}")
        self.log.tensorboard.close()  # Python may go on with other runs
        last = self.weights_folder / "last.pt"
        kept = f"; {last} is from before" if last.is_file() else ""
        return InputError(
            f"epoch {epoch + 1}, batch {error.number + 1}: {error} with {names} ({picture}){kept}; a lower lr0 or"
            " --no-amp may help"
        )

    def _save(self, place: Place, *, is_best: bool = False) -> None:
        """Write last.pt, best.pt if these weights are the best so far, and the periodic checkpoint when due."""
        epoch = place.epoch - 1  # the one concluded
        self.saved_best = epoch if is_best else self.saved_best
        stopper = self.stopper
        best = {
            "fitness": stopper.best,
            "epoch": stopper.best_epoch,
            "saved": self.saved_best,
            "stopped": self.stopped,
        }
        content = training_state(self.trainer, place) | {
            "rng": rng_state(),
            "data": self.data,
            "best": best | self.best_state(),
            "options": asdict(self.options),
            "hyp": asdict(self.hyp),
            "versions": {"torch": str(torch.__version__)},
            **self.state(),
        }
        if is_best:  # before last.pt, which says that it is there
            save_checkpoint(self.best, strip(content))
        save_checkpoint(self.weights_folder / "last.pt", content)
        self.saved_at = time.monotonic()
        period = self.options.save_period
        if period > 0 and place.batch == 0 and place.epoch % period == 0:
            save_checkpoint(self.weights_folder / f"epoch{epoch}.pt", content)

    def _finish(self) -> R:
        """Validate best.pt as its users will have it, and draw what the run looked like."""
        report = self.finish(self.task.rebuild(read_weights(self.best)))
        assert self.saved_best is not None
        self.logger.info(f"best.pt, of epoch {self.saved_best + 1}:\n{report.table(per_class=True)}")
        title = f"best.pt of {self.folder.name} on {Path(self.options.data).stem}, epoch {self.saved_best + 1}"
        self.log.finish(report, asdict(self.options), title=title)
        self.logger.info(f"results in {self.folder}")
        return report


def run_training(kind: type[TrainingRun[O, H, M, B, R]], options: O) -> R:
    """Train as the options say, from the start or from where a run stopped; returns the best epoch's validation."""
    checkpoint = None
    if options.resume:
        path = find_last(options.resume, options.project)
        checkpoint = load_checkpoint(path)
        refuse_other_task(checkpoint["config"], kind.task.name, path)
        options = resumed_options(options, checkpoint, path)
    seed_everything(options.seed)
    with StopSignals() as signals:
        return kind(options, checkpoint, signals).run()
