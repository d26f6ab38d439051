"""How many frames of a video are detected in, drawn and encoded in a second: a plain loop against overlap and batches.

    python -m benchmarks.video --weights WEIGHTS --source VIDEO --output benchmarks/results/video.md

The variants take turns in one process; the parts of the plain loop are timed, to tell what bounds the others.
"""

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.timing import Timed, heading, table, take_turns
from data.dataset import letterboxed_item
from data.frames import Frame
from data.loader import collate
from data.sources import Files
from models.yolo import Model
from utils.detection import Detection, Style
from utils.detection_files import Found, Output, Pictures
from utils.drawing import draw_detections
from utils.engine import NmsSettings, Predictor
from utils.options import InputError, Ranged, option, run_script
from utils.report import write_text_atomically
from utils.runs import check_image_size, open_model
from utils.upstream import select_device

STAGES = {"read": ("decode", "letterbox"), "detect": ("model",), "write": ("draw", "encode")}


@dataclass
class Options(Ranged):
    """Command line of the benchmark."""

    weights: str = option("", "checkpoint to detect with")
    source: str = option("", "video to detect in")
    imgsz: list[int] = option([320, 640], "image sizes in pixels", aliases=("--img",), least=32)
    batch_size: int = option(8, "frames in a forward pass, where there are batches", aliases=("--batch",), least=2)
    frames: int = option(1_000_000, "use no more of the video than its first so many frames", least=1)
    rounds: int = option(3, "timed turns of each variant, after one of a few frames that is not counted", least=1)
    device: str = option("", "cpu, or a GPU's number; empty chooses")
    output: str | None = option(None, "markdown file for the result; printed in any case")


class Clip(Files):
    """The first frames of a video."""

    def __init__(self, path: Path, frames: int) -> None:
        super().__init__([path])
        self.most = frames

    def _frames(self) -> Iterator[Frame]:
        return itertools.islice(super()._frames(), self.most)


@dataclass
class Meter:
    """Wall seconds and the processor's seconds, of all cores together, by part."""

    wall: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - wall
        self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - cpu


@dataclass
class Work:
    """A model, a clip, and a folder for the drawn video."""

    model: Model
    predictor: Predictor
    size: int
    clip: Clip
    folder: Path
    meter: Meter = field(default_factory=Meter)  # of all plain loops so far

    def plain_loop(self) -> None:
        """Detect frame by frame, one part after the other."""
        meter, frames, pictures = self.meter, iter(self.clip), Pictures(self.folder)
        while True:
            with meter.part("decode"):
                frame = next(frames, None)
            if frame is None:
                break
            with meter.part("letterbox"):
                batch = collate([letterboxed_item(frame.image, self.size, self.model.max_stride)])
            with meter.part("model"):
                rows = self.predictor(batch).original[0]
            with meter.part("draw"):
                picture = draw_detections(frame.image, rows, self.model.names)
            with meter.part("encode"):
                pictures.write(Found(frame, rows, "clip", picture))
        with meter.part("encode"):
            pictures.close()

    def stages(self, *, batch_size: int, overlap: bool) -> Timed:
        """Detect as detect.py does."""

        def run() -> None:
            output = Output(self.model.names, [Pictures(self.folder)])
            detection = Detection(
                self.clip, self.predictor, self.size, self.model, output, Style(), batch_size, overlap
            )
            with output, detection.pipeline() as results:
                for _ in results:
                    pass

        return run


def measure(options: Options, model: Model, size: int, folder: Path) -> list[str]:
    """The lines of one image size."""
    device = select_device(options.device)
    clip = Clip(Path(options.source), options.frames)
    predictor = Predictor(model, device, settings=NmsSettings())
    work = Work(model, predictor, check_image_size(size, model.max_stride), clip, folder)
    several = options.batch_size
    variants: dict[str, Timed] = {
        "plain loop": work.plain_loop,
        f"batches of {several}": work.stages(batch_size=several, overlap=False),
        "overlap": work.stages(batch_size=1, overlap=True),
        f"overlap, batches of {several}": work.stages(batch_size=several, overlap=True),
    }
    frames = sum(1 for _ in clip)
    if not frames:
        raise InputError(f"{options.source}: no frames in it")
    turns = take_turns(variants, options.rounds, device)
    times = {name: [value / frames for value in values] for name, values in turns.items()}
    medians = {name: statistics.median(values) for name, values in times.items()}
    speeds = ", ".join(f"{name} {1e3 / median:.1f}" for name, median in medians.items())
    lines = table(f"{size} px, {frames} frames", times, "ms a frame")
    return [
        *lines,
        f"Frames/s: {speeds}.",
        "",
        *explain(work.meter, frames * (options.rounds + 1), min(medians.values())),
        "",
    ]


def explain(meter: Meter, frames: int, fastest: float) -> list[str]:
    """The parts of the plain loop, and what they leave to be gained; `fastest` is the best variant's ms a frame."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wall, cpu = ({name: 1e3 * value / frames for name, value in part.items()} for part in (meter.wall, meter.cpu))
    lines = ["| part of the plain loop | ms a frame | share | cores busy |", "|---|---|---|---|"]
    for name, value in wall.items():
        lines.append(f"| {name} | {value:.2f} | {value / sum(wall.values()):.0%} | {cpu[name] / value:.2f} |")
    stages = {stage: sum(wall[part] for part in parts) for stage, parts in STAGES.items()}
    slowest = max(stages, key=lambda stage: stages[stage])
    arithmetic = sum(cpu.values()) / cores
    bound = max(stages[slowest], arithmetic)
    reason = (
        f"the slowest stage, {slowest}, which takes {stages[slowest]:.1f} ms a frame alone"
        if stages[slowest] >= arithmetic
        else f"the processor: a frame costs {sum(cpu.values()):.1f} ms of work, {arithmetic:.1f} ms on {cores} cores,"
        f" and the slowest stage, {slowest}, takes {stages[slowest]:.1f} ms alone"
    )
    best = f"{1e3 / bound:.1f} frames/s at best with batches of 1"
    text = f"Overlap is bounded by {reason}: {best}; the fastest variant reached {1e3 / fastest:.1f}."
    return [*lines, "", text]


def main(options: Options) -> None:
    """Measure all sizes and print or write the tables."""
    for flag in ("weights", "source"):
        if not getattr(options, flag):
            raise InputError(f"--{flag}: expected, but not given")
    model = open_model(options.weights)
    source, weights = Path(options.source).name, Path(options.weights).name
    lines = heading(
        f"Detection in {source} with {weights}, drawn and encoded: medians of {options.rounds} turns",
        f"python -m benchmarks.video --weights {weights} --source {source} --batch-size {options.batch_size}"
        f" --frames {options.frames} --rounds {options.rounds}",
        select_device(options.device),
    )
    with tempfile.TemporaryDirectory() as folder:
        for size in options.imgsz:
            lines += measure(options, model, size, Path(folder))
    print("\n".join(lines))
    if options.output:
        write_text_atomically(Path(options.output), "\n".join(lines))


if __name__ == "__main__":
    run_script(main, Options, "Measure how fast a video is detected in.")
