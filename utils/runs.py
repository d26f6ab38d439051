"""What every script does at its start: messages, seeds, the run's folder, the model behind `--weights` and `--cfg`."""

import contextlib
import logging
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from data.annotations import Annotations, read_annotations
from data.config import DataConfig
from data.frames import Source
from data.problems import Problem
from models.yolo import Model, load_model
from utils.checkpoint import DETECT, TransferReport, Weights, read_weights, refuse_other_task, transfer
from utils.lift import LiftReport, lift
from utils.options import ROOT, InputError, Interrupted, Ranged
from utils.upstream import Progress, increment_path, progress

M = TypeVar("M", bound=nn.Module)
PATIENCE = 2.0  # seconds without a bar
SHOWN_PROBLEMS = 5  # of a split's, at a script's start
CACHE = ROOT / "runs" / "cache"  # label tables and resized images, found again by path, size and time


def start_logging() -> logging.Logger:
    """Send the program's messages to stdout, plainly."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout, force=True)
    logger = logging.getLogger("yolov5-spd")
    logger.setLevel(logging.INFO)  # other packages are heard when they warn
    return logger


@contextlib.contextmanager
def scan_progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function that is told of the number done and of all, and shows a bar once that has taken a while."""
    bars: list[Progress[object]] = []
    done_before, start = 0, time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal done_before
        if time.monotonic() - start < PATIENCE:
            return
        if not bars:
            bars.append(progress(description=description, total=total, unit="image"))
        bars[0].update(done - done_before)
        done_before = done

    try:
        yield show
    finally:
        for bar in bars:
            bar.close()


def refuse_unused(options: Ranged, flags: Sequence[str], needed: Sequence[str]) -> None:
    """Refuse `flags` that say how to do what none of `needed` asks for; a switch left as it is by default may be given.

    Raises:
        InputError: it names the first such flag.
    """
    if any(getattr(options, name) for name in needed):
        return
    for name in flags:
        value = getattr(options, name)
        is_usual = isinstance(value, bool) and value == getattr(type(options), name)
        if name in options.given and not is_usual:
            flag = f"{'no-' if value is False else ''}{name}".replace("_", "-")
            wanted = " or ".join(f"--{other.replace('_', '-')}" for other in needed)
            raise InputError(f"--{flag}: has no effect without {wanted}")


class StopSignals:
    """Turns Ctrl-C and the system's request to end into `Interrupted`: at once, or inside `deferred` when asked.

    A second signal is never deferred. Outside of the main thread, which alone may handle signals, it does nothing.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._deferring = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if not self._deferring or self.requested is not None:
            raise Interrupted(signum)
        self.requested = signum

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note the first signal in this block; `check` tells of it."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self.requested is not None:
            raise Interrupted(self.requested)


def read_split(config: DataConfig, split: str) -> Annotations:
    """Read a split's table with the cache and a progress bar, and say what it holds and what is wrong with it.

    Raises:
        InputError: as `read_annotations`.
    """
    logger = logging.getLogger("yolov5-spd")
    with scan_progress(f"{split}: labels") as show:
        table = read_annotations(config, split, cache=CACHE, progress=show)
    objects, empty = int((~table.crowd).sum()), int((table.counts == 0).sum())
    logger.info(f"{split}: {len(table)} images, {objects} labels, {empty} images without")
    warn_of(table.problems, split, f"; python -m data.check {config.source} shows them all")
    return table


def warn_of(problems: Sequence[Problem], split: str, advice: str = "") -> None:
    """Tell what is wrong with a split, the first of it in full."""
    logger = logging.getLogger("yolov5-spd")
    for problem in problems[:SHOWN_PROBLEMS]:
        logger.warning(problem)
    if problems:
        logger.warning(f"{split}: {len(problems)} problems{advice}")


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators; the loader's workers have seeds of their own."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def make_run_folder(project: str, name: str, *, exist_ok: bool, below: str = "") -> Path:
    """Make PROJECT/NAME, or NAME2, NAME3 where it is taken, with a folder `below` it if wanted.

    Raises:
        InputError: the folder cannot be made.
    """
    folder = increment_path(Path(project) / name, exist_ok=exist_ok)
    try:
        (folder / below).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--project {project}: the folder {folder} cannot be made: {error.strerror}") from error
    return folder


def exit_if_incomplete(source: Source) -> None:
    """Exit with 1 and say so when a part of a source could not be read."""
    if source.failures or source.notes:
        of_all = f"of {len(source.files)} {'streams' if source.live else 'files'}"
        parts = ((source.failures, "could not be read"), (source.notes, "ended too early"))
        told = [f"{len(lines)} {of_all} {what}" for lines, what in parts if lines]
        sys.stderr.write(f"{', '.join(told)}\n")
        sys.exit(1)


def check_image_size(size: int, stride: int) -> int:
    """Round an image size up to a multiple of the model's stride, 2 strides at least, as `--img` allows any number."""
    return max(-(-size // stride), 2) * stride


def build_from_weights(weights: Weights) -> Model:
    """Rebuild the model that a checkpoint holds, with its weights.

    Raises:
        InputError: its tensors do not fit the model that its own YAML describes.
    """
    refuse_other_task(weights.config, DETECT, weights.source)
    return rebuild(lambda: Model(weights.config, names=weights.names, source=str(weights.source)), weights)


def rebuild(make: Callable[[], M], weights: Weights) -> M:
    """Make the network that a checkpoint's config describes, with the checkpoint's tensors.

    Raises:
        InputError: they do not fit.
    """
    _refuse_unfit(make, weights)
    model = make()
    transfer(model, weights)
    return model


def _refuse_unfit(make: Callable[[], nn.Module], weights: Weights) -> None:
    """Refuse a config whose network is not that of the tensors, before it is given memory, as much as it asks for."""
    with torch.device("meta"):  # shapes alone
        report = transfer(make(), weights)
    if report.missing or report.mismatched:
        raise InputError(f"{weights.source}: its weights do not fit its own model: {report}")


def open_model(path: str, data_names: Sequence[str] | None = None) -> Model:
    """Read a trained model for validation or detection.

    Raises:
        InputError: no checkpoint, or its classes are not as many as those of the data.
    """
    model = build_from_weights(read_weights(Path(path)))
    if data_names is not None and len(model.names) != len(data_names):
        raise InputError(
            f"{path}: has {len(model.names)} classes, but the data YAML names {len(data_names)}; they must agree"
        )
    return model


def start_model(
    weights: str, cfg: str, names: Sequence[str], anchors: int | None = None
) -> tuple[Model, TransferReport | LiftReport | None]:
    """Make the model to be trained: from a YAML, from a checkpoint, or from a YAML with a checkpoint's weights.

    A strided checkpoint is lifted into a YAML with space-to-depth; otherwise tensors go by their names and shapes.

    Raises:
        InputError: neither is given, or one of them is not what it should be.
    """
    if not weights and not cfg:
        raise InputError("--weights or --cfg: give a checkpoint to start from, a model YAML, or both")
    start = read_weights(Path(weights)) if weights else None
    if start is not None:
        refuse_other_task(start.config, DETECT, start.source)
    if cfg:
        model = load_model(cfg, names=names, anchors=anchors)
    else:
        assert start is not None
        _refuse_unfit(lambda: Model(start.config, names=start.names), start)
        config: dict[str, Any] = {**start.config} | ({"anchors": anchors} if anchors else {})
        model = Model(config, names=names, source=str(start.source))
    if start is None:
        return model, None
    lifted = lift(start, model, anchors=anchors is None) if cfg else None
    exclude = ["anchors"] if cfg or anchors else []
    return model, lifted or transfer(model, start, exclude=exclude)
