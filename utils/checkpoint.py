"""Checkpoints of training: written at once or not at all, read without running anything, and carried into models.

A checkpoint is a file of `torch.save` with tensors and plain values only, so `torch.load(weights_only=True)` opens it
anywhere; here it is read by the stricter `utils.archive`, which also opens YOLOv5's pickles for `read_weights`.
"""

import contextlib
import math
import os
import random
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.resnet import ARCHITECTURES, CLASSIFY, from_torchvision, recognise
from utils.archive import ContentError, as_float32, plain_copy, read_archive
from utils.legacy import INERT, find_state, parse_legacy
from utils.options import InputError

FORMAT = "yolov5-spd/1"
# updates: how many the EMA has seen; place: in the run; planned: epochs that the warm-up is reckoned for; data:
# fingerprints of the splits
_TRAINING_STATE = ("updates", "optimizer", "scaler", "rng", "place", "planned", "data")
_LATER = {"scale", "planned"}  # keys that older checkpoints of this format lack
KEYS = {"format", "config", "names", "model", "ema", "epoch", "best", "options", "hyp", "versions", *_TRAINING_STATE}
KEYS |= _LATER
DETECT = "detect"  # the task of a config without one
_FOR = {
    DETECT: "a detector, for train.py, val.py and detect.py",
    CLASSIFY: "a classifier, for the scripts in classify/",
}


@dataclass(frozen=True)
class Weights:
    """A model to build (`config`, the YAML), its class names, and its tensors with floats as float32."""

    config: dict[str, Any]
    names: list[str]
    state_dict: dict[str, Tensor]
    source: Path
    options: dict[str, Any] = field(default_factory=dict)  # of the training, in a checkpoint of ours


@dataclass(frozen=True)
class TransferReport:
    """What became of each tensor when weights were carried into a model, by name."""

    copied: list[str]
    excluded: list[str]  # asked to be left out
    missing: list[str]  # in the model only
    unused: list[str]  # in the weights only
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]  # shape in the weights, shape in the model

    def __str__(self) -> str:
        total = len(self.copied) + len(self.excluded) + len(self.missing) + len(self.mismatched)
        parts = [f"{len(self.copied)} of {total} tensors carried over"]
        if self.mismatched:
            name, (theirs, ours) = next(iter(self.mismatched.items()))
            parts.append(f"{len(self.mismatched)} of another shape ({name}: {theirs} for {ours})")
        for label, names in (("missing", self.missing), ("unused", self.unused), ("left out", self.excluded)):
            if names:
                parts.append(f"{len(names)} {label} ({names[0]}{', ...' if len(names) > 1 else ''})")
        return "\n  ".join((", ".join(parts), *self._rows()))

    def _rows(self) -> list[str]:
        """A line for each row of the model that did not get all of its tensors."""
        anew = {**dict.fromkeys(self.excluded, "left out"), **dict.fromkeys(self.missing, "missing")}
        anew |= {name: f"{theirs} there, {ours} here" for name, (theirs, ours) in self.mismatched.items()}
        rows: dict[str, list[str]] = {}
        for name in (*self.copied, *anew):
            rows.setdefault(_row_of(name), []).extend([name] if name in anew else [])
        totals = Counter(map(_row_of, (*self.copied, *anew)))
        return [
            f"{row}: {len(names)} of {totals[row]} tensors anew: "
            + ", ".join(f"{name.removeprefix(row + '.')} {anew[name]}" for name in names[:3])
            + (", ..." if len(names) > 3 else "")
            for row, names in rows.items()
            if names
        ]


def _row_of(name: str) -> str:
    """The row of a model's YAML that a tensor belongs to, `model.24` of `model.24.m.0.weight`."""
    return ".".join(name.split(".")[:2])


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint so that `path` holds the old file or the whole new one, whatever happens meanwhile.

    `content` has keys of `KEYS`, absent ones are None; `config` and `names` and one of `model` and `ema`
    (state_dicts) must be there. All of it is tensors and plain values.

    Raises:
        InputError: the file cannot be written (a full disk, a folder that is missing or read-only).
    """
    assert content.keys() <= KEYS, f"unknown keys: {sorted(content.keys() - KEYS)}"
    whole = dict.fromkeys(sorted(KEYS)) | dict(content) | {"format": FORMAT}
    try:
        plain = _checked(plain_copy(whole, "checkpoint", tensors=True))
    except ContentError as error:
        raise AssertionError(f"not fit for a checkpoint: {error}") from None
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(_compact(plain), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a failed write into a RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__
        reason = cause.strerror if isinstance(cause, OSError) else str(error).partition("\n")[0]
        raise InputError(f"{path}: the checkpoint could not be written: {reason}") from error
    finally:
        with contextlib.suppress(OSError):  # renamed, or never begun
            temporary.unlink()


def _compact(value: Any) -> Any:
    """Bring tensors to the CPU, and views to memory of their own: torch.save writes the storage behind a tensor."""
    if isinstance(value, dict):
        return {key: _compact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_compact(item) for item in value])
    if not isinstance(value, Tensor):
        return value
    whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
    return value.cpu() if whole else value.cpu().clone()


def _sync_folder(folder: Path) -> None:
    """Bring a rename to the disk; only POSIX can open a folder for that."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of `save_checkpoint`, with its tensors on the CPU.

    Raises:
        InputError: the file is missing, truncated, damaged, or no checkpoint of this format.
    """
    return _ours(read_archive(path, inert=INERT), path)


def read_weights(path: Path) -> Weights:
    """Read the model in a checkpoint of ours, YOLOv5's, the authors' or torchvision's, told apart by its content.

    It is the EMA where there is one.

    Raises:
        InputError: the file is missing, truncated, damaged, of neither kind, or asks for a name not on the list.
    """
    content = read_archive(path, inert=INERT)
    if not (isinstance(content, dict) and "format" in content):
        state = from_torchvision(find_state(content))
        config = recognise(state)
        if config is not None:
            return Weights(config, [str(number) for number in range(config["nc"])], _as_float32(state, path), path)
        if "conv2_x.0.residual_function.0.weight" in state:
            raise InputError(f"{path}: holds a ResNet that is none of {', '.join(ARCHITECTURES)}")
        legacy = parse_legacy(content, path)
        return Weights(legacy.config, legacy.names, legacy.state_dict, path)
    ours = _ours(content, path)
    state = _as_float32(ours["ema"] or ours["model"], path)
    options = ours["options"] if isinstance(ours["options"], dict) else {}
    return Weights(ours["config"], ours["names"], state, path, options)


def _as_float32(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    try:
        return as_float32(state, path.stat().st_size)
    except ContentError as error:
        raise InputError(f"{path}: {error}") from None


def refuse_other_task(config: Mapping[str, Any], task: str, source: Path) -> None:
    """Refuse a checkpoint's config that is not of a model for `task`.

    Raises:
        InputError: it says for which scripts the model is.
    """
    found = config.get("task", DETECT)
    if found != task:
        raise InputError(f"{source}: holds {_FOR.get(found, f'a model for {found!r:.40}')}")


def training_scale(path: Path) -> float:
    """Read how many pixels a network was shown for a pixel of its training images.

    Raises:
        InputError: the file does not tell.
    """
    content = read_archive(path, inert=INERT)
    scale = _ours(content, path)["scale"] if isinstance(content, dict) and "format" in content else None
    if not isinstance(scale, float) or not 0 < scale < math.inf:
        raise InputError(
            f"{path}: does not tell at what scale it was trained, as --tile auto needs; give pixels instead"
        )
    return scale


def _ours(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        other = isinstance(content, dict) and type(content.get("format")) is str
        found = f"format {content['format']!r:.40}" if other else "another program's file"
        raise InputError(f"{path}: expected a checkpoint of format '{FORMAT}', found {found}")
    try:
        return _checked(plain_copy(content, "content", tensors=True))
    except ContentError as error:
        raise InputError(f"{path}: {error}") from None


def _checked(content: dict[str, Any]) -> dict[str, Any]:
    """Return plain `content` when its keys and the types of what every reader needs are right."""
    if content.keys() | _LATER != KEYS:
        odd = ", ".join(f"{key!r:.40}" for key in sorted(content.keys() ^ KEYS, key=str)[:3])
        raise ContentError(f"keys missing or unknown: {odd}")
    if not isinstance(content["config"], dict) or not _all_text(content["names"]):
        raise ContentError("expected config as a dict and names as a list of texts")
    states = [content[key] for key in ("model", "ema") if content[key] is not None]
    if not states or not all(map(_is_state, states)):
        raise ContentError("expected model or ema as a dict of tensors by name")
    if type(content["epoch"]) not in (int, type(None)):
        raise ContentError("expected epoch as a whole number")
    return dict.fromkeys(sorted(_LATER)) | content


def _all_text(value: Any) -> bool:
    return isinstance(value, list) and all(type(name) is str for name in value)


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


def strip(content: Mapping[str, Any]) -> dict[str, Any]:
    """Reduce a checkpoint to what using the model needs: the EMA (else the model) in half precision, no training state.

    A tensor that half precision cannot hold (beyond 65504) stays as it is.
    """
    state = content.get("ema") or content["model"]
    gone = dict.fromkeys(("model", *_TRAINING_STATE))
    return {**content, **gone, "ema": {key: _half(tensor) for key, tensor in state.items()}}


def _half(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    half = tensor.detach().half()
    return half if bool((half.isfinite() == tensor.isfinite()).all()) else tensor.detach()


def transfer(model: nn.Module, weights: Weights, *, exclude: Collection[str] = ()) -> TransferReport:
    """Copy into `model` the tensors that have the same name and shape, and report on all others.

    A tensor is left out when a part of its dotted name is in `exclude`: `anchors` leaves out `model.24.anchors`.
    """
    target, source = model.state_dict(), weights.state_dict
    excluded = [name for name in target if not set(exclude).isdisjoint(name.split("."))]
    common = [name for name in target if name in source and name not in set(excluded)]
    copied = [name for name in common if source[name].shape == target[name].shape]
    with torch.no_grad():
        for name in copied:
            target[name].copy_(source[name])  # a state_dict shares its memory with the model
    return TransferReport(
        copied=copied,
        excluded=excluded,
        missing=[name for name in target if name not in source and name not in set(excluded)],
        unused=[name for name in source if name not in target],
        mismatched={
            name: (tuple(source[name].shape), tuple(target[name].shape)) for name in common if name not in set(copied)
        },
    )


def rng_state(**generators: np.random.Generator) -> dict[str, Any]:
    """Take the state of torch's, the GPUs', Python's and the given numpy generators, as plain values and tensors."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": {name: generator.bit_generator.state for name, generator in generators.items()},
    }


def restore_rng(state: Mapping[str, Any], **generators: np.random.Generator) -> None:
    """Set the generators to a state of `rng_state`; states of GPUs that this machine lacks are left out.

    Raises:
        InputError: the state is none, or lacks one of the given generators.
    """
    try:
        torch.set_rng_state(state["torch"])
        for device, gpu in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(gpu, device)
        random.setstate(state["python"])
        for name, generator in generators.items():
            generator.bit_generator.state = state["numpy"][name]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"rng: expected a state of the random generators, {type(error).__name__}: {error}") from error
