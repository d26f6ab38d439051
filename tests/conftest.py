"""What the tests share: the figures measured on the authors' code and on upstream YOLOv5."""

import json
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def spd_reference() -> dict[str, Any]:
    """Figures of the authors' YOLOv5-SPD."""
    return json.loads((GOLDEN / "spd_reference.json").read_text())


@pytest.fixture(scope="session")
def yolov5_reference() -> dict[str, Any]:
    """Figures of upstream's strided YOLOv5."""
    return json.loads((GOLDEN / "yolov5_reference.json").read_text())
