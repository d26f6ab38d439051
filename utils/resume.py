"""Going on with a training that stopped: its checkpoint, its options, and whether its data are still the same."""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data.annotations import Annotations
from utils.checkpoint import restore_rng
from utils.options import InputError, Ranged, from_mapping
from utils.training import Place, Trainer

O = TypeVar("O", bound=Ranged)  # noqa: E741
T = TypeVar("T")
CHANGEABLE = frozenset(  # flags that may be given anew with --resume; all others are the run's own
    "resume data epochs patience device workers cache nosave noplots save_period save_interval compile".split()
)


def find_last(resume: str, project: str) -> Path:
    """Turn `--resume`'s value, a checkpoint, a run's folder or `newest` of a project, into a checkpoint's path."""
    if resume != "newest":
        path = Path(resume).resolve()
        return path / "weights" / "last.pt" if path.is_dir() else path
    return newest("last.pt", project)


def newest(name: str, project: str) -> Path:
    """The file of a name that was written last of those below a folder of runs."""
    found = sorted(Path(project).glob(f"**/{name}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise InputError(f"--resume: no {name} below {project}")
    return found[-1].resolve()


def resumed_options(options: O, checkpoint: Mapping[str, Any], path: Path) -> O:
    """The options of the run that a checkpoint belongs to, with those of `options` that were given and may change.

    Raises:
        InputError: the checkpoint holds no run to continue, or another value was given for what may not change.
    """
    if checkpoint["optimizer"] is None or checkpoint["options"] is None or checkpoint["place"] is None:
        raise InputError(f"{path}: holds a finished model, not a run to continue; use it as --weights")
    if path.parent.name != "weights" or not (path.parents[1] / "opt.yaml").is_file():
        raise InputError(f"{path}: expected RUN/weights/{path.name} in the folder of the run to go on with")
    saved = from_mapping(type(options), checkpoint["options"], f"{path}: options")
    changed = changed_options(saved, options, options.given, CHANGEABLE, path)
    folder = path.parents[1]
    place = {"resume": str(path), "project": str(folder.parent), "name": folder.name, "exist_ok": True}
    return replace(changed, **place)  # type: ignore[type-var]


def changed_options(saved: T, options: T, given: Iterable[str], changeable: Collection[str], path: Path) -> T:
    """The `saved` options of the run in `path`, with those of `options` that were given and are changeable.

    Raises:
        InputError: another value was given for what may not change.
    """
    changed = {}
    for name in sorted(given):
        old, new = getattr(saved, name), getattr(options, name)
        if name in changeable:
            changed[name] = new
        elif old != new:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag} {new}: the run in {path} has {old}, which cannot change when it is resumed")
    return replace(saved, **changed)  # type: ignore[type-var]


def fingerprint(table: Annotations) -> dict[str, Any]:
    """What a run must find again of a split when it is resumed, wherever the data lie by then."""
    files = "\n".join(path.name for path in table.paths).encode(errors="surrogateescape")
    return {
        "classes": list(table.names),
        "number of images": len(table),
        "number of labels": len(table.classes),
        "images": _digest(files, table.sizes_wh),
        "labels": _digest(table.starts, table.classes, table.boxes, table.crowd),
    }


def _digest(*parts: bytes | np.ndarray) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:16]


def refuse_changed_data(saved: Mapping[str, Any], found: Mapping[str, Any], source: str) -> None:
    """Refuse a split whose fingerprint is not the saved one.

    Raises:
        InputError: it says what differs.
    """
    for key, now in found.items():
        then = saved.get(key)
        if then != now:
            told = "" if key in ("images", "labels") else f": {then} then, {now} now"
            raise InputError(f"{source}: {key} changed since the run to resume began{told}")


def restore(trainer: Trainer[Any, Any], checkpoint: Mapping[str, Any]) -> Place:
    """Set a trainer and the random generators to where a checkpoint was written; returns the place in the run."""
    trainer.model.load_state_dict(checkpoint["model"])
    trainer.ema.model.load_state_dict(checkpoint["ema"])
    trainer.ema.updates = checkpoint["updates"]
    trainer.optimizer.load_state_dict(checkpoint["optimizer"])
    if checkpoint["scaler"]:  # empty from a run in another precision
        trainer.scaler.load_state_dict(checkpoint["scaler"])
    trainer.schedule = replace(trainer.schedule, planned=checkpoint["planned"] or checkpoint["options"]["epochs"])
    restore_rng(checkpoint["rng"])
    return from_mapping(Place, checkpoint["place"], "place")


def training_state(trainer: Trainer[Any, Any], place: Place) -> dict[str, Any]:
    """A checkpoint's entries that `restore` needs, but for the random generators."""
    return {
        "config": trainer.model.config,
        "names": trainer.model.names,
        "model": trainer.model.state_dict(),
        "ema": trainer.ema.model.state_dict(),
        "updates": trainer.ema.updates,
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "epoch": place.epoch if place.batch else place.epoch - 1,  # that the weights come from
        "place": asdict(place),
        "planned": trainer.schedule.planned or trainer.schedule.epochs,
    }
