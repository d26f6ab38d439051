"""The door to the ultralytics package lets through what is wanted and nothing else."""

import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from utils import upstream
from utils.options import ROOT, InputError

STATE = """
import os, sys, warnings
import cv2, numpy, PIL.Image, torch
def state():
    return (torch.save, torch.load, torch.get_num_threads(), cv2.getNumThreads(), cv2.imread, PIL.Image.open,
            numpy.get_printoptions(), str(torch.tensor([1.5, 2e-9])), list(warnings.filters),
            {k: v for k, v in os.environ.items() if k != "YOLO_OFFLINE"})
torch.set_num_threads(3)
before = state()
import socket
socket.getaddrinfo = None
import utils.upstream
after = state()
assert before == after, [pair for pair in zip(before, after) if pair[0] != pair[1]]
assert utils.upstream.select_device("cpu").type == "cpu"
assert torch.get_num_threads() == 3
assert "matplotlib" not in sys.modules
assert os.environ["YOLO_OFFLINE"] == "1"
"""


def test_import_leaves_libraries_environment_and_home_as_they_were(tmp_path: Path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("YOLO", "OMP"))}
    environment |= {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", STATE], env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_run_folders_are_numbered_as_yolov5_does(tmp_path: Path):
    for expected in ("exp", "exp2", "exp3"):
        folder = upstream.increment_path(tmp_path / "exp")
        assert folder == tmp_path / expected
        folder.mkdir()
    assert upstream.increment_path(tmp_path / "exp", exist_ok=True) == tmp_path / "exp"


@pytest.mark.parametrize("text", ["99", "banana", "tpu", "0,99", "cuda:99"])
def test_unknown_device_is_told_in_one_line(text: str):
    with pytest.raises(InputError) as told:
        upstream.select_device(text)
    assert f"--device {text}:" in str(told.value)
    assert "\n" not in str(told.value)


def test_default_device_is_the_gpu_if_there_is_one():
    assert upstream.select_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_progress_in_a_log_is_one_line(monkeypatch: pytest.MonkeyPatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    bar = upstream.progress(range(1000), "scan")
    total = 0
    for number in bar:
        total += number
        bar.describe(f"scan sum {total}")
    assert total == sum(range(1000))
    lines = log.getvalue().splitlines()
    assert len(lines) == 1
    assert "1000/1000" in lines[0]
    assert "\r" not in log.getvalue()


def test_progress_ends_when_the_loop_breaks(monkeypatch: pytest.MonkeyPatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    for number in upstream.progress(iter(range(10)), "read"):
        if number == 4:
            break
    assert log.getvalue().count("\n") == 1


def test_progress_without_items_is_moved_by_hand(monkeypatch: pytest.MonkeyPatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with upstream.progress(description="download", total=2_000_000, unit="B") as bar:
        for _ in range(2):
            bar.update(1_000_000)
    assert "100%" in log.getvalue()
    assert "MB" in log.getvalue()


def test_progress_tells_the_true_rate_from_the_first_line_on(monkeypatch: pytest.MonkeyPatch):
    log, clock = io.StringIO(), iter(range(10**6))
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(upstream, "LOG_INTERVAL", 1.0)
    monkeypatch.setattr("time.time", lambda: float(next(clock)) * 5)  # 5 s after the last look
    with upstream.progress(description="scan", total=100, unit="image") as bar:
        for _ in range(3):
            bar.update(10)
    first = next(line for line in log.getvalue().splitlines() if " 10/100 " in line)
    assert "2.0image/s" in first


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_new_text_before_the_next_step(monkeypatch: pytest.MonkeyPatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with upstream.progress(description="detect", total=3, unit="file") as bar:
        for tile in range(100):
            time.sleep(0.004)
            bar.describe(f"tile {tile}")
        shown = [frame for frame in screen.getvalue().split("\r\033[K") if "tile" in frame]
        assert 2 <= len(shown) <= 6  # in 0.4 seconds or a little more
        assert all("0/3" in frame for frame in shown)
        bar.update()
    last = screen.getvalue().split("\r\033[K")[-1]
    assert "tile 99" in last
    assert float(re.search(r"([0-9.]+)file/s", last)[1]) <= 2.5  # not measured from where the text was last shown
