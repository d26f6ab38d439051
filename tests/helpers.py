"""What the tests of the scripts share: commands run as a user runs them, and what their runs leave behind."""

import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from utils.options import run_script
from utils.run_log import RunLog


def command(script: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Run a script as the command line does; returns its exit status."""
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
    try:
        run_script(getattr(script, "command_line", script.main), script.Options, script.__doc__)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def flags(options: dict[str, Any]) -> list[str]:
    pairs = {f"--{name.replace('_', '-')}": value for name, value in options.items()}
    return [text for flag, value in pairs.items() for text in ([flag] if value is True else [flag, str(value)])]


def raise_signal(monkeypatch: pytest.MonkeyPatch, signum: int, batch: int) -> None:
    """Let the first epoch's batch of that number bring a signal."""
    monkeypatch.setattr(
        RunLog, "batch_drawer", lambda *_: lambda number, _: number == batch and signal.raise_signal(signum)
    )


def error_line(capsys: pytest.CaptureFixture) -> str:
    """What the command ended with, after its progress bars: one line, and no traceback."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert text.count("error: ") == 1, text
    return text.strip().splitlines()[-1].removeprefix("error: ")


def same_end(one: Path, other: Path) -> None:
    assert (one / "results.csv").read_text() == (other / "results.csv").read_text()
    first, second = (torch.load(run / "weights/last.pt", weights_only=True) for run in (one, other))
    for part in ("model", "ema"):
        assert all(torch.equal(value, second[part][key]) for key, value in first[part].items())


def read_txt(folder: Path) -> dict[str, np.ndarray]:
    return {file.stem: np.loadtxt(file, ndmin=2) for file in sorted(folder.glob("*.txt"))}
