"""What a data set of COCO's size costs: seconds to read its labels, memory of the table, memory of the workers.

    python -m benchmarks.scale --output benchmarks/results/scale.md

The set is made in a temporary folder: as many images and boxes as COCO's train2017 has, the boxes as YOLO's text files
and, with polygons, as a COCO json. Each measurement is taken in a process of its own. For Linux.
"""

import gc
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from datetime import date
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

import numpy as np

from benchmarks.large_set import generate
from benchmarks.timing import processor
from data.annotations import Annotations, read_annotations
from data.augment import Augmentation
from data.config import load_data_config
from data.dataset import DetectionDataset
from data.loader import make_loader
from utils.options import Ranged, option, run_script
from utils.report import write_text_atomically

KINDS = {"text": "YOLO txt, boxes", "json": "COCO json, polygons"}
WARM_UP = 50  # batches before the first look at the workers' memory
P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class Options(Ranged):
    """Command line of the benchmark; a field is a flag."""

    images: int = option(118_287, "images of the set", least=1)
    boxes: int = option(860_001, "boxes of the set", least=1)
    points: int = option(24, "mean number of points of a polygon", least=3)
    imgsz: int = option(64, "image size of the epoch", least=32)
    batch_size: int = option(32, "images in a batch", least=1)
    workers: int = option(2, "processes that load images", least=1)
    output: str | None = option(None, "markdown file for the result; printed in any case")


class Reading(NamedTuple):
    """One reading of a table: seconds, of them at work, and the process's memory in bytes beyond what it had before."""

    seconds: float
    cpu_seconds: float
    resident: int
    peak: int
    arrays: int


class Memory(NamedTuple):
    """Memory of a process in bytes: what no other process has, and with its share of what others have too."""

    unique: int
    proportional: int


class Epoch(NamedTuple):
    """An epoch: seconds, batches, and the workers' memory after its first batches and at its end."""

    seconds: float
    batches: int
    first: list[Memory]
    last: list[Memory]


def apart(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function in a new process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def status(name: str) -> int:
    """A figure of this process in /proc, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def memory(process: int) -> Memory:
    """Memory of a process, as the kernel accounts for it."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    figures = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines}
    return Memory(figures["Private_Clean"] + figures["Private_Dirty"], figures["Pss"])


def array_bytes(table: Annotations) -> int:
    """Bytes in a table's arrays."""
    values = (getattr(table, field.name) for field in fields(table))
    return sum(value.nbytes for value in values if isinstance(value, np.ndarray))


def read(folder: Path, kind: str) -> Annotations:
    """Read the table, from the cache if it is there."""
    return read_annotations(load_data_config(folder / f"{kind}.yaml"), "train", cache=folder / "cache")


def measure_reading(folder: Path, kind: str) -> Reading:
    """Read the table and see what is left in memory."""
    gc.collect()
    before, start, cpu_start = status("VmRSS"), time.perf_counter(), time.process_time()
    table = read(folder, kind)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    gc.collect()
    growth = {name: status(name) - before for name in ("VmRSS", "VmHWM")}
    return Reading(seconds, cpu_seconds, growth["VmRSS"], growth["VmHWM"], array_bytes(table))


def measure_epoch(folder: Path, kind: str, options: Options) -> Epoch:
    """Load an epoch of mosaics with workers and look at their memory."""
    dataset = DetectionDataset(read(folder, kind), options.imgsz, augmentation=Augmentation(mosaic=1.0))
    loader = make_loader(dataset, batch_size=options.batch_size, workers=options.workers, train=True)
    start = time.perf_counter()
    batches = iter(loader)
    begun = sum(1 for _ in itertools.islice(batches, WARM_UP))
    workers = [child.pid for child in active_children() if child.pid]
    first = [memory(worker) for worker in workers]
    count = begun + sum(1 for _ in batches)
    return Epoch(time.perf_counter() - start, count, first, [memory(worker) for worker in workers])


def reading_line(name: str, reading: Reading) -> str:
    """A row of the table of readings."""
    sizes = " | ".join(f"{size / 1e6:.0f}" for size in (reading.arrays, reading.resident, reading.peak))
    return f"| {name} | {reading.seconds:.1f} | {reading.cpu_seconds:.1f} | {sizes} |"


def epoch_lines(name: str, epoch: Epoch) -> list[str]:
    """A row for each worker."""
    rows = zip(epoch.first, epoch.last, strict=True)
    return [
        f"| {name} | {worker} | {first.unique / 1e6:.1f} | {last.unique / 1e6:.1f} |"
        f" {(last.unique - first.unique) / 1e6:+.1f} |"
        f" {first.proportional / 1e6:.0f} | {last.proportional / 1e6:.0f} |"
        for worker, (first, last) in enumerate(rows, 1)
    ]


def measure(folder: Path, options: Options) -> list[str]:
    """Make the set, take all measurements, and tell them in markdown."""
    apart(generate, folder, options.images, options.boxes, options.points)
    lines = [
        *("| labels | seconds | CPU seconds | arrays MB | parent's growth MB | peak MB |", "|---|---|---|---|---|---|"),
    ]
    for kind, name in KINDS.items():
        lines.append(reading_line(f"{name}, no cache", apart(measure_reading, folder, kind)))
        lines.append(reading_line(f"{name}, cached", apart(measure_reading, folder, kind)))
    epochs = {name: apart(measure_epoch, folder, kind, options) for kind, name in KINDS.items()}
    lines += ["", "| epoch | worker | unique MB, start | end | growth | proportional MB, start | end |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for name, epoch in epochs.items():
        lines += epoch_lines(f"{name}: {epoch.batches} batches, {epoch.seconds:.0f} s", epoch)
    return lines


def main(options: Options) -> None:
    """Measure all, and print and write the tables."""
    with tempfile.TemporaryDirectory() as folder:
        tables = measure(Path(folder), options)
    flags = "".join(
        f" --{name.replace('_', '-')} {getattr(options, name)}" for name in sorted(options.given - {"output"})
    )
    heading = [
        f"# {options.images:,} images, {options.boxes:,} boxes",
        "",
        f"{date.today().isoformat()}, {processor()}, {len(os.sched_getaffinity(0))} cores",
        "",
        f"`python -m benchmarks.scale{flags}`",
        "",
    ]
    text = "\n".join([*heading, *tables, ""])
    sys.stdout.write(text)
    if options.output:
        write_text_atomically(Path(options.output), text)


if __name__ == "__main__":
    run_script(main, Options, "Measure what a data set of COCO's size costs.")
