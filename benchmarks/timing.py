"""What the benchmarks share: taking turns, and how a result is headed and laid out."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path

import torch

Timed = Callable[[], object]


def take_turns(
    variants: Mapping[str, Timed], rounds: int, device: torch.device | None = None
) -> dict[str, list[float]]:
    """Milliseconds of each variant in each round, after one that is not counted.

    The variants take turns, so that a machine whose speed drifts does not favour one of them.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            if device is not None and device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def table(title: str, times: Mapping[str, Sequence[float]], unit: str = "ms") -> list[str]:
    """Lines of a markdown table in which the first variant is what the others are measured against."""
    medians = {name: statistics.median(samples) for name, samples in times.items()}
    baseline = next(iter(medians.values()))
    lines = [f"### {title}", "", f"| variant | median {unit} | from | to | speed-up |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | {medians[name]:.3g} | {min(samples):.3g} | {max(samples):.3g} | {baseline / medians[name]:.2f}x |"
        for name, samples in times.items()
    ]
    return [*lines, ""]


def processor() -> str:
    """The CPU's name, which Python knows on some systems only."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def heading(title: str, command: str, device: torch.device | None = None) -> list[str]:
    """Title, date, machine, versions and command."""
    name = torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else processor()
    machine = f"{name}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    return [
        f"# {title}", "", f"{date.today().isoformat()}, {machine}, torch {torch.__version__}.", "", f"`{command}`", ""
    ]  # fmt: skip
