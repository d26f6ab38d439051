"""What the fast paths gain on this machine, and what SPD costs beside strided convolutions.

    python -m benchmarks.speed --output benchmarks/results/speed-cpu.md

All variants run in one process, taking turns; medians, and ratios to the first variant of each table. The loader and a
whole epoch are in `benchmarks.epoch`, which compares with another checkout.
"""

import copy
import cProfile
import io
import pstats
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from benchmarks.timing import Timed, heading, table, take_turns
from models.fold import fold, fuse
from models.network import Network
from models.summary import gflops
from models.yolo import Model, load_model
from utils.boxes import nms, xywh_to_xyxy
from utils.hyp import Hyp
from utils.loss import DetectionLoss
from utils.optim import EMA, make_optimizer
from utils.options import ROOT, Ranged, option, run_script
from utils.report import write_text_atomically
from utils.training import compile_model, find_amp
from utils.upstream import select_device

M = TypeVar("M", bound=Network)
TRAINING = ((16, 320), (8, 640))  # images, pixels
INFERENCE = ((8, 640), (1, 640), (8, 320))
NHWC, NCHW = torch.channels_last, torch.contiguous_format
PLAIN, DEFAULT = "SPD, plain", "SPD, folded, channels last (default)"
SECTIONS = ("peak", "training", "inference", "nms", "memory", "growth", "profile")
PROFILED_STEPS = 10


@dataclass
class Options(Ranged):
    """Command line of the benchmark."""

    spd: str = option("yolov5-spd-n.yaml", "SPD model")
    strided: str = option("yolov5n.yaml", "strided baseline")
    sections: list[str] = option([], "what to measure, all when not given", choices=SECTIONS)
    rounds: int = option(7, "timed turns of each variant, after one that is not counted", least=1)
    compile: bool = option(False, "also with torch.compile")
    device: str = option("", "cpu, or a GPU's number; empty chooses")
    output: str | None = option(None, "markdown file for the result; printed in any case")


def some_boxes(images: int, objects: int = 7) -> Tensor:
    """Boxes (M, 6) of a batch, small ones."""
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(images * objects, 6, generator=generator) * torch.tensor([0, 80, 1, 1, 0.2, 0.2])
    boxes[:, 0] = torch.arange(images).repeat_interleave(objects)
    return boxes


def make_loss(model: Model) -> DetectionLoss:
    """The loss with the usual gains."""
    gains = {"box": 0.05, "obj": 1.0, "cls": 0.5}
    return DetectionLoss(model.head.anchors, model.head.classes, gains).to(model.head.anchors.device)


def training_step(
    model: Model, images: Tensor, amp: torch.dtype | None = None, *, compiled: bool = False, objects: int = 7
) -> Timed:
    """Forward, loss and backward of a batch with so many objects in an image."""
    criterion, boxes = make_loss(model), some_boxes(len(images), objects)
    forward = compile_model(model) if compiled else model

    def run() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, amp, enabled=amp is not None):
            raw = forward(images)
        torch.stack(list(criterion(raw, boxes).values())).sum().backward()  # type: ignore[no-untyped-call]

    return run


def inference(model: Model, images: Tensor, amp: torch.dtype | None = None, *, compiled: bool = False) -> Timed:
    """Forward pass and decoding of a batch, of all that has an objectness of 0.001 or more."""
    forward = compile_model(model) if compiled else model

    @torch.inference_mode()
    def run() -> None:
        with torch.autocast(images.device.type, amp, enabled=amp is not None):
            model.decode_above(forward(images), 0.001)

    return run


def prepared(model: M, memory_format: torch.memory_format, *, folded: bool, training: bool) -> M:
    """A copy of a model as it is trained or used."""
    ready = copy.deepcopy(model).train() if training else fuse(model)
    ready.to(memory_format=memory_format)
    return fold(ready, frozen=not training) if folded else ready


def step_variants(options: Options, device: torch.device, batch: int, size: int, *, training: bool) -> dict[str, Timed]:
    """What is timed for one kind of work, the plain contiguous SPD model first."""
    torch.manual_seed(0)
    spd, strided = (load_model(cfg).to(device) for cfg in (options.spd, options.strided))
    images = torch.rand(batch, 3, size, size, device=device)
    amp = find_amp(device)
    wanted: list[tuple[str, Model, torch.memory_format, bool, torch.dtype | None, bool]] = [
        (PLAIN, spd, NCHW, False, None, False),
        ("SPD, channels last", spd, NHWC, False, None, False),
        ("SPD, folded", spd, NCHW, True, None, False),
        (DEFAULT if amp is None else "SPD, folded, channels last", spd, NHWC, True, None, False),
        ("strided, plain", strided, NCHW, False, None, False),
        ("strided, channels last", strided, NHWC, False, None, False),
    ]
    if amp is not None:
        precision = str(amp).removeprefix("torch.")
        wanted.append((f"SPD, folded, channels last, {precision}", spd, NHWC, True, amp, False))
        wanted.append((f"strided, channels last, {precision}", strided, NHWC, False, amp, False))
    if options.compile:
        wanted.append(("SPD, folded, channels last, compiled", spd, NHWC, True, amp, True))
    make = training_step if training else inference
    return {
        name: make(
            prepared(model, form, folded=folded, training=training), images.to(memory_format=form), dtype, compiled=jit
        )
        for name, model, form, folded, dtype, jit in wanted
    }


def measure_steps(options: Options, device: torch.device, *, training: bool) -> list[str]:
    """Tables of training steps or of inference."""
    lines = []
    work = "forward, loss and backward" if training else "inference, batch normalisation fused"
    for batch, size in TRAINING if training else INFERENCE:
        variants = step_variants(options, device, batch, size, training=training)
        lines += table(f"{work}: {batch} x {size} px", take_turns(variants, options.rounds, device))
    return lines


def measure_peak(options: Options, device: torch.device) -> list[str]:
    """The arithmetic that the machine can do, and what the models' would take at that rate."""
    side = 2048
    a, b = torch.rand(side, side, device=device), torch.rand(side, side, device=device)
    (times,) = take_turns({"product": lambda: a @ b}, options.rounds, device).values()
    rate = 2 * side**3 / (min(times) / 1e3)
    lines = [
        f"### Arithmetic: {rate / 1e9:.0f} GFLOP/s in a product of {side} x {side} matrices, the best of the turns",
        "",
    ]
    lines += [
        "| model | multiply-adds counted as two, 8 x 640 px | inference at that rate | training step |",
        "|---|---|---|---|",
    ]

    for cfg in (options.spd, options.strided):
        work = 8 * gflops(load_model(cfg), 640) * 1e9
        lines.append(f"| {cfg} | {work / 1e9:.0f} GFLOP | {1e3 * work / rate:.0f} ms | {3e3 * work / rate:.0f} ms |")
    return [*lines, ""]


def measure_nms(device: torch.device) -> list[str]:
    """Suppression against torchvision's on all candidates of an image, as a model gives them before it has learnt."""
    lines = []
    for candidates, classes in ((30_000, 4), (3_000, 80), (300, 80)):
        generator = torch.Generator().manual_seed(0)
        shape = (candidates, 5 + classes)
        decoded = [torch.rand(shape, generator=generator) for _ in range(8)]
        for rows in decoded:
            rows[:, :4] *= torch.tensor([640, 640, 60, 60])
            rows[:, 5:] *= 0.3
        given = [rows.to(device) for rows in decoded]

        def plain(images: list[Tensor] = given) -> None:
            for rows in images:
                scores = rows[:, 5:] * rows[:, 4:5]
                row, label = (scores > 0.001).nonzero(as_tuple=True)
                confidence = scores[row, label]
                order = confidence.argsort(descending=True)[:30_000]
                boxes = xywh_to_xyxy(rows[row[order], :4])
                batched_nms(boxes, confidence[order], label[order], 0.6)[:300]

        def ours(images: list[Tensor] = given) -> None:
            nms(images, conf=0.001, iou=0.6, multi_label=True, max_det=300)

        times = take_turns({"torchvision's batched_nms, image by image": plain, "ours": ours}, 3, device)
        lines += table(f"suppression: 8 images of {candidates:,} boxes, {classes} classes", times)
    return lines


def step_memory(cfg: str, plain: bool, batch: int, size: int) -> float:
    """MB that a training step adds to this process at its peak; on the CPU."""
    model = prepared(load_model(cfg), NCHW if plain else NHWC, folded=not plain, training=True)
    images = torch.rand(batch, 3, size, size).to(memory_format=NCHW if plain else NHWC)
    hyp = Hyp()
    optimizer, average, step = make_optimizer(model, "SGD", hyp, batch), EMA(model), training_step(model, images)
    before = process_memory("VmRSS")
    step()
    optimizer.step()
    average.update()
    return process_memory("VmHWM") - before


def process_memory(entry: str) -> float:
    """MB of this process now (VmRSS) or at its peak (VmHWM), as Linux tells; getrusage's peak may be the parent's."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(entry))


def measure_memory(options: Options) -> list[str]:
    """Peak memory of a training step, each in a process of its own."""
    lines = ["### peak memory of a training step: 16 x 640 px", "", "| variant | MB | share |", "|---|---|---|"]
    cases = {PLAIN: (options.spd, True), DEFAULT: (options.spd, False), "strided, plain": (options.strided, True)}
    found = {}
    for name, case in cases.items():
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found[name] = pool.submit(step_memory, *case, 16, 640).result()
    lines += [f"| {name} | {value:.0f} | {value / found[PLAIN]:.2f} |" for name, value in found.items()]
    return [*lines, ""]


def measure_growth(options: Options, device: torch.device) -> list[str]:
    """Time of a training step by the number of objects in an image."""
    model = prepared(load_model(options.spd).to(device), NHWC, folded=True, training=True)
    images = torch.rand(8, 3, 320, 320, device=device).to(memory_format=NHWC)
    runs = {
        f"{objects} objects": training_step(model, images, find_amp(device), objects=objects)
        for objects in (1, 10, 100, 500)
    }
    return table("a training step of 8 x 320 px, by objects in an image", take_turns(runs, options.rounds, device))


def measure_profile(options: Options, device: torch.device) -> list[str]:
    """Where the Python of a training step spends its time: the functions of this project, in themselves."""
    model = prepared(load_model(options.spd).to(device), NHWC, folded=True, training=True)
    images = torch.rand(16, 3, 320, 320, device=device).to(memory_format=NHWC)
    optimizer, average = make_optimizer(model, "SGD", Hyp(), 16), EMA(model)
    step = training_step(model, images, find_amp(device))
    step()
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(PROFILED_STEPS):
        step()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        average.update()
    profile.disable()
    stats = pstats.Stats(profile, stream=io.StringIO())
    entries: dict[tuple[str, int, str], Sequence[float]] = stats.stats  # type: ignore[attr-defined]
    total = stats.total_tt  # type: ignore[attr-defined]
    ours = [
        (own / total, f"{Path(file).relative_to(ROOT)}:{line} {name}")
        for (file, line, name), (_, _, own, *_) in entries.items()
        if Path(file).is_relative_to(ROOT)
    ]
    lines = [
        f"### profile of {PROFILED_STEPS} training steps, 16 x 320 px: this project's functions, without what they call"
    ]
    lines += ["", "```", *(f"{share:7.2%} {name}" for share, name in sorted(ours, reverse=True)[:12]), "```", ""]
    return lines


def main(options: Options) -> None:
    """Measure all that is asked for, and print or write the tables."""
    device = select_device(options.device)
    flags = " ".join(f"--{name} {getattr(options, name)}" for name in sorted(options.given - {"output", "sections"}))
    title = f"{options.spd} and {options.strided}"
    lines = heading(title, f"python -m benchmarks.speed {flags}".strip(), device)
    lines += [f"Medians of {options.rounds} turns; speed-up against the first variant of a table, in the same run.", ""]
    measures = {
        "peak": lambda: measure_peak(options, device),
        "training": lambda: measure_steps(options, device, training=True),
        "inference": lambda: measure_steps(options, device, training=False),
        "nms": lambda: measure_nms(device),
        "memory": lambda: measure_memory(options),
        "growth": lambda: measure_growth(options, device),
        "profile": lambda: measure_profile(options, device),
    }
    sys.stdout.write("\n".join(lines))
    for section in options.sections or SECTIONS:
        found = measures[section]()
        lines += found
        sys.stdout.write("\n".join(found))
        sys.stdout.flush()
    if options.output:
        write_text_atomically(Path(options.output), "\n".join(lines))


if __name__ == "__main__":
    run_script(main, Options, "Measure what the fast paths gain and what SPD costs.")
