"""ResNet-18 with SPD-Conv against the strided one: speed folded and plain, and accuracy as images get poorer.

    python -m benchmarks.classify --output benchmarks/results/classify.md

Trains each network with each seed on the marks cut out of glyphs, shown whole, at a half and at a quarter of their
pixels. What is trained stays in PROJECT: a command that was cut off goes on where it was.
"""

import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.speed import prepared
from benchmarks.timing import Timed, heading, table, take_turns
from classify import train
from models.resnet import ResNet, build_resnet
from utils.options import Ranged, option, run_script
from utils.report import write_text_atomically
from utils.training import find_amp
from utils.upstream import select_device

MODELS = ("resnet18", "resnet18_spd")
SHRINKS = (1, 2, 4)
NHWC = torch.channels_last
VARIANTS = {  # network, space-to-depth in the shortcuts, folded
    "ResNet18-SPD, plain": ("resnet18_spd", False, False),
    "ResNet18-SPD, folded": ("resnet18_spd", False, True),
    "ResNet18-SPD, in the shortcuts too, plain": ("resnet18_spd", True, False),
    "ResNet18-SPD, in the shortcuts too, folded": ("resnet18_spd", True, True),
    "ResNet-18, strided": ("resnet18", False, False),
}


@dataclass
class Options(Ranged):
    """Command line of the benchmark."""

    rounds: int = option(10, "measurements of each variant; 0 measures no speed", least=0)
    batch_size: int = option(64, "images in a batch whose time is taken", aliases=("--batch",), least=1)
    seeds: list[int] = option([0, 1, 2], "a training for each")
    epochs: int = option(2, "passes over the training images", least=1)
    accuracy: bool = option(True, "train and tell the accuracy")
    device: str = option("", "cpu, or a GPU's number; empty chooses")
    workers: int = option(0, "processes that load images", least=0)
    project: str = option("runs/classify/table", "folder of the trainings")
    output: str | None = option(None, "markdown file for the result; printed in any case")


def training_step(model: ResNet, images: torch.Tensor, amp: torch.dtype | None) -> Timed:
    """Forward, loss and backward of a batch."""
    labels = torch.arange(len(images), device=images.device) % len(model.names)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, amp, enabled=amp is not None):
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]

    return run


def inference(model: ResNet, images: torch.Tensor, amp: torch.dtype | None) -> Timed:
    """Forward pass of a batch."""

    @torch.inference_mode()
    def run() -> None:
        with torch.autocast(images.device.type, amp, enabled=amp is not None):
            model(images)

    return run


def measure_speed(options: Options) -> Iterator[str]:
    """Tables of training steps and of inference, in the precision of training."""
    device = select_device(options.device)
    amp = find_amp(device)
    precision = str(amp or torch.float32).removeprefix("torch.")
    images = torch.rand(options.batch_size, 3, 32, 32, device=device).to(memory_format=NHWC)
    for work, make, training in (("training step", training_step, True), ("inference", inference, False)):
        timed = {}
        for name, (arch, shortcut, folded) in VARIANTS.items():
            torch.manual_seed(0)
            model = build_resnet(arch, 10, spd_shortcut=shortcut).to(device)
            timed[name] = make(prepared(model, NHWC, folded=folded, training=training), images, amp)
        times = take_turns(timed, options.rounds, device)
        yield from table(f"{work}, {options.batch_size} images of 32 px, {precision}", times)


def top1(options: Options, model: str, shrink: int, seed: int) -> float:
    """Accuracy of a training on the test images; it goes on if it was cut off, and is done once."""
    name = f"{model}-shrink{shrink}-seed{seed}-epochs{options.epochs}"
    folder = Path(options.project) / name
    metrics, last = folder / "test/metrics.json", folder / "weights/last.pt"
    if not metrics.is_file():
        chosen = {"model": model, "shrink": shrink, "seed": seed, "epochs": options.epochs}
        place = {"project": options.project, "name": name, "exist_ok": True, "noplots": True}
        common = {"device": options.device, "workers": options.workers}
        train.run(**({"resume": str(folder)} if last.is_file() else chosen | place), **common)
    last.unlink(missing_ok=True)  # 235 MB that nothing goes on from
    return float(json.loads(metrics.read_text(encoding="utf-8"))["top1"])


def measure_accuracy(options: Options) -> Iterator[str]:
    """A table with a row for each network and number of pixels."""
    yield f"### top-1 on the test images, {options.epochs} epochs, seeds {', '.join(map(str, options.seeds))}"
    yield from ("", "| network | images shown at | of each seed | mean |", "|---|---|---|---|")
    for shrink in SHRINKS:
        for model in MODELS:
            found = [top1(options, model, shrink, seed) for seed in options.seeds]
            each = ", ".join(f"{value:.3f}" for value in found)
            yield f"| {model} | {32 // shrink} px | {each} | {statistics.mean(found):.3f} |"
    yield ""


def main(options: Options) -> None:
    """Measure, and print or write the tables."""
    lines = heading("ResNet-18 with SPD-Conv and with strides", "python -m benchmarks.classify")
    if options.rounds:
        lines += measure_speed(options)
    if options.accuracy:
        lines += measure_accuracy(options)
    text = "\n".join(lines)
    sys.stdout.write(text)
    if options.output:
        write_text_atomically(Path(options.output), text)


if __name__ == "__main__":
    run_script(main, Options, "Compare ResNet-18 with SPD-Conv and with strides.")
