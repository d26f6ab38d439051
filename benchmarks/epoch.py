"""The loader and a whole training epoch, from the command to its metrics, against another checkout of the project.

    git worktree add ../before COMMIT
    python -m benchmarks.epoch --against ../before --output benchmarks/results/epoch-cpu.md

The commands take turns; medians, and ratios to the other checkout.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.timing import heading, table
from utils.options import ROOT, InputError, Ranged, option, run_script
from utils.report import write_text_atomically

GROWTH = ((1, 7), (80, 7), (800, 7), (1, 70), (1, 500))  # how often each of 128 images is there, objects in an image


@dataclass
class Options(Ranged):
    """Command line of the benchmark."""

    against: str = option("", "folder of the checkout to compare with")
    data: str = option("", "data YAML of JPEGs for the loader; made when not given")
    rounds: int = option(3, "turns of each command", least=1)
    workers: int = option(2, "processes that load images", least=0)
    train: str = option(
        "--data glyphs.yaml --cfg yolov5-spd-n.yaml --hyp glyphs.yaml --img 320 --batch 8 --epochs 1 --seed 0",
        "the training's flags, in one text",
    )
    before: str = option("--no-fold --no-amp", "further flags of the other checkout's training")
    output: str | None = option(None, "markdown file for the result; printed in any case")


def run(tree: Path, arguments: Sequence[str]) -> str:
    """Run a Python command on a checkout's code; returns what it prints.

    Raises:
        InputError: it fails.
    """
    done = subprocess.run(  # noqa: S603 - the project's own commands
        [sys.executable, *arguments],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise InputError(f"{tree}: {' '.join(arguments)}: ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


def images_a_second(tree: Path, flags: Sequence[str]) -> float:
    """The best epoch but the first."""
    lines = run(tree, [str(ROOT / "benchmarks/loading.py"), *flags]).split()
    return max(map(float, lines[1:] or lines))


def epoch_seconds(tree: Path, flags: Sequence[str]) -> float:
    """Seconds of a training, from the command to its metrics."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run(tree, ["train.py", *flags, "--project", folder])
        return time.perf_counter() - start


def main(options: Options) -> None:
    """Compare, and print or write the tables."""
    if not (Path(options.against) / "train.py").is_file():
        raise InputError(f"--against {options.against!r}: expected the folder of another checkout")
    trees = {"the other checkout": Path(options.against).resolve(), "this one": ROOT}
    loading = ["--workers", str(options.workers), *(["--data", options.data] if options.data else [])]
    training = [*options.train.split(), "--workers", str(options.workers)]
    milliseconds: dict[str, list[float]] = {name: [] for name in trees}
    seconds: dict[str, list[float]] = {name: [] for name in trees}
    for _ in range(options.rounds):
        for name, tree in trees.items():
            milliseconds[name].append(1e3 / images_a_second(tree, loading))
            before = options.before.split() if tree != ROOT else []
            seconds[name].append(epoch_seconds(tree, training + before))
    lines = heading("Loader and epoch", "python -m benchmarks.epoch --against ../before")
    lines += table(f"loader: mosaics of 640 px from JPEG files, {options.workers} workers, an image", milliseconds)
    lines += table(f"train.py {options.train}, the other one with {options.before}", seconds, "s")
    lines += ["### loader without workers, by images in the set and objects in an image", ""]
    lines += ["| images | objects | ms an image |", "|---|---|---|"]
    for repeat, objects in GROWTH:
        flags = ["--workers", "0", "--batches", "8", "--repeat", str(repeat), "--objects", str(objects)]
        lines.append(f"| {128 * repeat:,} | {objects} | {1e3 / images_a_second(ROOT, flags):.1f} |")
    text = "\n".join([*lines, ""])
    sys.stdout.write(text)
    if options.output:
        write_text_atomically(Path(options.output), text)


if __name__ == "__main__":
    run_script(main, Options, "Compare loader and epoch with another checkout.")
