"""What folding and the memory format gain, and what SPD costs beside strided convolutions, on this machine.

    python -m benchmarks.speed --output benchmarks/results/speed.md

All variants run in one process, taking turns, so that a machine whose speed drifts does not favour one of them.
"""

import copy
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from models.fold import fold, fuse
from models.yolo import Model, load_model
from utils.loss import DetectionLoss
from utils.options import Ranged, option, run_script
from utils.report import write_text_atomically
from utils.upstream import select_device

TRAINING = ((16, 320), (8, 640))  # images, pixels
INFERENCE = ((8, 640), (1, 640), (8, 320))
Timed = Callable[[], object]


@dataclass
class Options(Ranged):
    """Command line of the benchmark."""

    spd: str = option("yolov5-spd-n.yaml", "SPD model")
    strided: str = option("yolov5n.yaml", "strided baseline")
    rounds: int = option(7, "timed turns of each variant, after one that is not counted", least=1)
    device: str = option("", "cpu, or a GPU's number; empty chooses")
    output: str | None = option(None, "markdown file for the result; printed in any case")


def take_turns(variants: dict[str, Timed], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds of each variant in each round, the variants taking turns."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def training_step(model: Model, images: Tensor, boxes: Tensor) -> Timed:
    """Forward, loss and backward of a batch."""
    head = model.head
    criterion = DetectionLoss(head.anchors, head.classes, {"box": 0.05, "obj": 1.0, "cls": 0.5}).to(images.device)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        torch.stack(list(criterion(model(images), boxes).values())).sum().backward()  # type: ignore[no-untyped-call]

    return run


def inference(model: Model, images: Tensor) -> Timed:
    """Forward pass and decoding of a batch, of all that has an objectness of 0.001 or more."""

    @torch.inference_mode()
    def run() -> None:
        model.decode_above(model(images), 0.001)

    return run


def variants(spd: Model, strided: Model, *, training: bool) -> dict[str, tuple[Model, torch.memory_format]]:
    """The models to compare, the plain contiguous SPD first."""
    nhwc, nchw = torch.channels_last, torch.contiguous_format

    def prepared(model: Model, memory_format: torch.memory_format, *, folded: bool) -> Model:
        ready = copy.deepcopy(model).train() if training else fuse(model)
        ready.to(memory_format=memory_format)
        return fold(ready, frozen=not training) if folded else ready

    return {
        "SPD, plain": (prepared(spd, nchw, folded=False), nchw),
        "SPD, channels last": (prepared(spd, nhwc, folded=False), nhwc),
        "SPD, folded": (prepared(spd, nchw, folded=True), nchw),
        "SPD, folded, channels last (default)": (prepared(spd, nhwc, folded=True), nhwc),
        "strided, plain": (prepared(strided, nchw, folded=False), nchw),
        "strided, channels last (default)": (prepared(strided, nhwc, folded=False), nhwc),
    }


def measure(options: Options, device: torch.device, batch: int, size: int, *, training: bool) -> list[str]:
    """Lines of a markdown table for one kind of work."""
    torch.manual_seed(0)
    spd, strided = (load_model(cfg).to(device) for cfg in (options.spd, options.strided))
    images = torch.rand(batch, 3, size, size, device=device)
    boxes = torch.rand(batch * 7, 6, device=device) * torch.tensor([0, 80, 1, 1, 0.2, 0.2], device=device)
    boxes[:, 0] = torch.arange(batch, device=device).repeat_interleave(7)
    runs: dict[str, Timed] = {}
    for name, (model, memory_format) in variants(spd, strided, training=training).items():
        given = images.to(memory_format=memory_format)
        runs[name] = training_step(model, given, boxes) if training else inference(model, given)
    times = take_turns(runs, options.rounds, device)
    baseline = statistics.median(times["SPD, plain"])
    work = "forward, loss and backward" if training else "inference, batch normalisation fused"
    lines = [
        f"### {work}: {batch} x {size} px",
        "",
        "| variant | median ms | from | to | speed-up |",
        "|---|---|---|---|---|",
    ]
    for name, samples in times.items():
        median = statistics.median(samples)
        lines.append(f"| {name} | {median:.0f} | {min(samples):.0f} | {max(samples):.0f} | {baseline / median:.2f}x |")
    return [*lines, ""]


def processor() -> str:
    """The CPU's name, which Python knows on some systems only."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe(options: Options, device: torch.device) -> list[str]:
    """Heading: date, machine, versions, command."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return [
        f"# {options.spd} and {options.strided}, float32",
        "",
        f"{date.today().isoformat()}, {name}, {torch.get_num_threads()} threads,"
        f" {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}. Medians of {options.rounds} turns;"
        " speed-up against the plain contiguous SPD model in the same run.",
        "",
        f"`python -m benchmarks.speed --spd {options.spd} --strided {options.strided} --rounds {options.rounds}`",
        "",
    ]


def main(options: Options) -> None:
    """Measure all and print or write the tables."""
    device = select_device(options.device)
    lines = describe(options, device)
    for batch, size in TRAINING:
        lines += measure(options, device, batch, size, training=True)
    for batch, size in INFERENCE:
        lines += measure(options, device, batch, size, training=False)
    print("\n".join(lines))
    if options.output:
        write_text_atomically(Path(options.output), "\n".join(lines))


if __name__ == "__main__":
    run_script(main, Options, "Measure what folding gains and what SPD costs.")
