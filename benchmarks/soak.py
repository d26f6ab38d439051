"""Kill a training over and over with SIGKILL, resume it each time, and compare what it ends with to a run left alone.

    python -m benchmarks.soak --kills 20 --workers 2 --output benchmarks/results/soak.md

Weights, average, optimizer and results.csv must agree to the last bit. For systems with a fork.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

import train
from utils.checkpoint import load_checkpoint
from utils.options import InputError, Ranged, option, run_script
from utils.report import write_text_atomically

EVERY_STEP = 1e-6  # minutes between checkpoints
POLL = 0.005  # seconds


@dataclass
class Options(Ranged):
    """Command line of the soak; a field is a flag."""

    kills: int = option(20, "times to kill the run", least=1)
    workers: int = option(2, "processes that load images", least=0)
    epochs: int = option(6, "passes over the training images", least=1)
    data: str = option("glyphs.yaml", "data YAML")
    cfg: str = option("yolov5-spd-n.yaml", "model YAML")
    hyp: str = option("glyphs.yaml", "recipe")
    imgsz: int = option(64, "image size in pixels", least=1)
    batch_size: int = option(8, "images in a batch", least=1)
    seed: int = option(0, "seed of the run and of the moments", least=0)
    output: str | None = option(None, "markdown file for the result; printed in any case")


def fork(work: Callable[[], object]) -> int:
    """Start `work` in a copy of this process, on one thread; returns its process number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)  # a fork has none of its parent's threads
        work()
        os._exit(0)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
    finally:
        os._exit(1)


def run_to_the_end(work: Callable[[], object]) -> float:
    """Run `work` in a process of its own; returns its seconds."""
    start = time.monotonic()
    _, status = os.waitpid(fork(work), 0)
    if status:
        raise InputError(f"a run ended with status {os.waitstatus_to_exitcode(status)}")
    return time.monotonic() - start


def run_and_kill(work: Callable[[], object], last: Path, delay: float) -> bool:
    """Run `work` and kill it `delay` seconds after it first writes `last`; whether it was still running then."""
    before = last.stat().st_mtime_ns if last.is_file() else 0
    child, deadline = fork(work), None
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if status:
                raise InputError(f"a run ended with status {os.waitstatus_to_exitcode(status)}")
            return False
        if deadline is None and last.is_file() and last.stat().st_mtime_ns != before:
            deadline = time.monotonic() + delay
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(POLL)


def differences(whole: Path, cut: Path) -> list[str]:
    """What differs between two runs' ends."""
    found = []
    first, second = (load_checkpoint(run / "weights" / "last.pt") for run in (whole, cut))
    for part in ("model", "ema"):
        found += [f"{part} {name}" for name, value in first[part].items() if not torch.equal(value, second[part][name])]
    states = (flat(state["optimizer"]["state"]) for state in (first, second))
    found += [f"optimizer {a}" for a, b in zip(*states, strict=True) if a != b]
    if (whole / "results.csv").read_text() != (cut / "results.csv").read_text():
        found.append("results.csv")
    return found


def flat(state: dict[Any, dict[str, Any]]) -> list[str]:
    """An optimizer's state as comparable texts."""
    return [
        f"{number} {key} {value.tolist() if isinstance(value, torch.Tensor) else value}"
        for number, entry in sorted(state.items())
        for key, value in sorted(entry.items())
    ]


def soak(options: Options, folder: Path) -> list[str]:
    """Run, kill and resume in `folder`; returns the log's lines."""
    common = {name: getattr(options, name) for name in "workers epochs data cfg hyp imgsz batch_size seed".split()}
    common |= {"noplots": True, "project": str(folder), "exist_ok": True, "device": "cpu"}
    seconds = run_to_the_end(lambda: train.run(**common, name="whole"))
    cut, rng = folder / "cut", np.random.default_rng(options.seed)
    last = cut / "weights" / "last.pt"

    def start_or_resume() -> None:
        if last.is_file():
            train.run(resume=str(cut))
        else:
            train.run(**common, name="cut", save_interval=EVERY_STEP)

    lines = [f"whole run: {seconds:.1f} s", ""]
    for kill in range(options.kills):
        if not run_and_kill(start_or_resume, last, rng.uniform(0, seconds / options.kills)):
            lines.append(f"ended before kill {kill + 1}")
            break
        place = load_checkpoint(last)["place"]
        lines.append(f"- kill {kill + 1}: {place['batch']} batches of epoch {place['epoch'] + 1} were saved")
    else:
        run_to_the_end(start_or_resume)
    found = differences(folder / "whole", cut)
    return [*lines, "", f"differences: {', '.join(found) or 'none'}"]


def main(options: Options) -> None:
    """Soak, and say what came of it.

    Raises:
        InputError: the two runs differ.
    """
    with tempfile.TemporaryDirectory() as folder:
        lines = soak(options, Path(folder))
    flags = " ".join(
        f"--{name.replace('_', '-')} {getattr(options, name)}" for name in sorted(options.given - {"output"})
    )
    heading = ["# Killed and resumed", "", f"{date.today().isoformat()}, `python -m benchmarks.soak {flags}`", ""]
    text = "\n".join([*heading, *lines, ""])
    sys.stdout.write(text)
    if options.output:
        write_text_atomically(Path(options.output), text)
    if not lines[-1].endswith("none"):
        raise InputError(lines[-1])


if __name__ == "__main__":
    run_script(main, Options, "Kill and resume a training, and compare it with one left alone.")
