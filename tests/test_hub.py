"""What YOLOv5's documentation does with torch.hub, call by call, and programs with packages of the same names."""

import base64
import copy
import io
import subprocess
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import hubconf
from models.yolo import Model
from utils.hub import HubModel
from utils.options import ROOT, InputError

IMAGES = [np.random.default_rng(number).integers(0, 255, (60, 96, 3), np.uint8) for number in range(2)]


ENTRIES = sorted(path.stem.replace("-", "_") for path in (ROOT / "models").glob("*.yaml"))


def load(name: str, *arguments: Any, **options: Any) -> Any:
    return torch.hub.load(str(ROOT), name, *arguments, source="local", **{"device": "cpu"} | options)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is not the project's, with two images, to work in."""
    for name, image in zip(("zidane.jpg", "bus.jpg"), IMAGES, strict=True):
        cv2.imwrite(str(tmp_path / name), image)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def loaded(random_checkpoint: Path) -> HubModel:
    return load("custom", path=random_checkpoint)


@pytest.fixture
def model(loaded: HubModel) -> HubModel:
    return copy.deepcopy(loaded)


def test_a_model_by_name(caplog: pytest.LogCaptureFixture) -> None:
    model = load("yolov5_spd_n")
    assert "yolov5-spd-n: random weights, nothing is learnt yet" in caplog.text
    assert len(caplog.messages) == 1
    results = model("zidane.jpg", size=64)
    assert len(results.xyxy) == 1


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_builds_its_yaml(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[dict[str, Any], str]] = []
    monkeypatch.setattr("utils.hub.Model", lambda config, source: built.append((config, source)))
    monkeypatch.setattr("utils.hub._finished", lambda *_: None)
    load(entry, _verbose=False)
    config, source = built[0]
    assert source == f"{entry.replace('_', '-')}.yaml"
    assert (config["nc"], config["ch"]) == (80, 3)
    assert entry.replace("_", "-") + ".pt" in getattr(hubconf, entry).__doc__


def test_entries_are_all_that_torch_hub_lists() -> None:
    listed = [name for name in dir(hubconf) if callable(getattr(hubconf, name)) and not name.startswith("_")]
    assert set(listed) == {*ENTRIES, "custom"}


def test_silence_and_reloading(caplog: pytest.LogCaptureFixture) -> None:
    load("yolov5n", force_reload=True, _verbose=False, autoshape=False)
    assert not caplog.messages


def test_another_number_of_classes() -> None:
    assert load("yolov5n", classes=10).names == {number: str(number) for number in range(10)}
    with pytest.raises(InputError, match="nc: expected a number of classes, found 0"):
        load("yolov5n", classes=0)


def test_another_number_of_channels(caplog: pytest.LogCaptureFixture) -> None:
    network = load("yolov5n", channels=4, _verbose=False)
    assert caplog.messages == ["images have 3 channels, the model reads 4: it is left to be called on tensors"]
    assert isinstance(network, Model)
    assert network(torch.zeros(1, 4, 64, 64))[0].shape == (1, 3, 8, 8, 85)


@pytest.mark.parametrize("options", [{"autoshape": False}, {"autoshape": False, "pretrained": False}])
def test_a_network_to_train(options: dict[str, Any]) -> None:
    network = load("yolov5_spd_n", _verbose=False, **options)
    raw = network(torch.zeros(1, 3, 64, 64))
    sum(level.mean() for level in raw).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_pretrained_weights(random_checkpoint: Path, caplog: pytest.LogCaptureFixture, elsewhere: Path) -> None:
    (elsewhere / "yolov5-spd-n.pt").write_bytes(random_checkpoint.read_bytes())
    assert load("yolov5_spd_n", pretrained=True, classes=3).names == {0: "disc", 1: "cross", 2: "star"}
    assert not caplog.messages
    network = load("yolov5_spd_n", True, 3, 5, False)  # by position
    assert len(network.names) == 5
    assert "6 of another shape" in caplog.text  # weights and biases of three scales
    expected = torch.load(random_checkpoint, weights_only=True)["model"]
    for key, value in network.state_dict().items():
        if value.shape == expected[key].shape:
            torch.testing.assert_close(value, expected[key])


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("yolov5s", "get it from https://github.com/ultralytics/"),
        ("yolov5_spd_s", "train with --cfg yolov5-spd-s.yaml"),
    ],
)
def test_weights_that_are_not_there(name: str, advice: str, elsewhere: Path) -> None:
    with pytest.raises(InputError) as error:
        load(name, pretrained=True)
    assert f"no {name.replace('_', '-')}.pt in {elsewhere}" in str(error.value)
    assert advice in str(error.value)


def test_a_model_of_ones_own(random_checkpoint: Path, model: HubModel) -> None:
    again = load("custom", str(random_checkpoint), _verbose=False)
    results = [one("zidane.jpg", size=96).xyxy[0] for one in (model, again)]
    assert len(results[0]) > 20
    assert torch.equal(*results)
    assert isinstance(load("custom", random_checkpoint, autoshape=False), Model)
    with pytest.raises(InputError, match="no such file"):
        load("custom", "none.pt")


def test_devices(random_checkpoint: Path, model: HubModel) -> None:
    model.cpu()
    model.to(torch.device("cpu"))
    assert len(model("bus.jpg", size=96)) == 1
    for device in ("cpu", torch.device("cpu")):
        network = load("custom", random_checkpoint, device=device, autoshape=False)
        assert network.head.anchors.device == torch.device("cpu")
    with pytest.raises(InputError, match="no such device"):
        load("custom", random_checkpoint, device=63)


def test_the_detailed_example(model: HubModel, capsys: pytest.CaptureFixture[str], elsewhere: Path) -> None:
    im1 = Image.open("zidane.jpg")
    im2 = cv2.imread("bus.jpg")[..., ::-1]
    results = model([im1, im2], size=96)
    results.print()
    assert "image 2/2" in capsys.readouterr().out
    results.save()
    assert sorted(file.name for file in (elsewhere / "runs/detect/exp").iterdir()) == ["image1.jpg", "zidane.jpg"]
    assert results.xyxy[0].shape[1] == 6
    assert (results.xyxy[0][:, 4].diff() <= 0).all()


def test_the_table_and_its_json(model: HubModel) -> None:
    pytest.importorskip("pandas")
    table = model("zidane.jpg", size=96).pandas().xyxy[0]
    assert list(table.columns) == ["xmin", "ymin", "xmax", "ymax", "confidence", "class", "name"]
    assert table.sort_values("xmin").to_json(orient="records").startswith("[{")


def test_inference_settings(model: HubModel) -> None:
    assert (model.conf, model.iou, model.agnostic, model.multi_label) == (0.25, 0.45, False, False)
    assert (model.classes, model.max_det, model.amp) == (None, 1000, False)
    model.conf, model.iou, model.agnostic, model.multi_label = 0.1, 0.3, True, True
    model.classes, model.max_det, model.amp = [0, 2], 10, True
    rows = model("zidane.jpg", size=64).xyxy[0]
    assert 0 < len(rows) <= 10
    assert set(rows[:, 5].tolist()) <= {0.0, 2.0}


def test_a_screenshot(model: HubModel) -> None:
    grab = Image.fromarray(np.dstack((IMAGES[0], IMAGES[0][..., 0])))  # RGBA, as some systems give it
    assert len(model(grab, size=96).xyxy[0]) > 0


def test_two_models_in_threads(model: HubModel, loaded: HubModel) -> None:
    found: dict[int, torch.Tensor] = {}

    def run(number: int, model: HubModel) -> None:
        found[number] = model("zidane.jpg", size=96).xyxy[0]

    threads = [Thread(target=run, args=numbered) for numbered in enumerate((model, loaded))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(found[0], found[1])


def test_base64_results(model: HubModel) -> None:
    results = model("zidane.jpg", size=96)
    before = results.ims[0].copy()
    results.render()
    assert (results.ims[0] != before).any()
    buffer = io.BytesIO()
    Image.fromarray(results.ims[0]).save(buffer, format="JPEG")
    assert base64.b64encode(buffer.getvalue()).decode("utf-8").startswith("/9j/")


def test_cropped_results(model: HubModel, elsewhere: Path) -> None:
    model.max_det = 4
    crops = model("zidane.jpg", size=96).crop(save=True)
    assert len(crops) == len(list(elsewhere.glob("runs/detect/exp/crops/*/zidane*.jpg"))) == 4
    assert crops[0].keys() == {"box", "conf", "cls", "label", "im"}


NEIGHBOUR = """
import sys
import numpy, torch
import utils, models.net
foreign = utils, models, models.net

model = torch.hub.load(sys.argv[1], "custom", path=sys.argv[2], source="local", device="cpu")
image = numpy.random.default_rng(0).integers(0, 255, (60, 96, 3), numpy.uint8)
results = model(image, size=96)
results.save(save_dir="pictures")

assert (utils, models, models.net) == foreign
assert (sys.modules["utils"], sys.modules["models"], sys.modules["models.net"]) == foreign
import data
import utils as again
assert (data.WHOSE, again.WHOSE, models.net.WHOSE) == ("theirs", "theirs", "theirs")
assert not any("yolov5" in name for name in sys.modules) and sys.argv[1] not in sys.path

sys.path.append(sys.argv[1])  # behind the program's own folder, which has a utils
import hubconf
assert hubconf.custom(sys.argv[2], device="cpu")(image, size=96).xyxy[0].equal(results.xyxy[0])
assert sys.modules["utils"] is utils
print(len(results.xyxy[0]))
"""


def test_a_program_with_packages_of_the_same_names(random_checkpoint: Path, elsewhere: Path, model: HubModel) -> None:
    for name in ("utils.py", "models/net.py", "data/__init__.py"):  # a module, a folder without __init__, a package
        (elsewhere / name).parent.mkdir(exist_ok=True)
        (elsewhere / name).write_text("WHOSE = 'theirs'\n")
    (elsewhere / "program.py").write_text(NEIGHBOUR)
    command = [sys.executable, "program.py", str(ROOT), str(random_checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(model(IMAGES[0], size=96).xyxy[0])
    assert (elsewhere / "pictures/image0.jpg").is_file()
