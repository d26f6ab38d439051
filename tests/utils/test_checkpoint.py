"""Checkpoints: what is saved comes back, nothing half-written stays, and foreign content is one line."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from models.resnet import ResNet, build_resnet
from models.yolo import load_model
from tests.utils.damage import flipped_files
from utils.checkpoint import (
    FORMAT,
    TransferReport,
    Weights,
    load_checkpoint,
    read_weights,
    restore_rng,
    rng_state,
    save_checkpoint,
    strip,
    training_scale,
    transfer,
)
from utils.options import InputError

CONFIG = {"nc": 2, "backbone": [[-1, 1, "Conv", [8, 3]]], "head": []}


def net(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.SiLU(), nn.Conv2d(width, 2, 1))


def trained():
    """A model, its optimizer, schedule and scaler after a step."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(torch.rand(2, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    return model, optimizer, torch.amp.GradScaler("cpu")


def content(**others):
    model, optimizer, scaler = trained()
    return {
        "config": CONFIG,
        "names": ["cell", "plate"],
        "model": model.state_dict(),
        "ema": {key: value + 1 for key, value in model.state_dict().items()},
        "updates": 1,
        "optimizer": optimizer.state_dict(),
        "place": {"epoch": 4, "batch": 2, "losses": (0.5, 0.25, 0.125), "images": 32},
        "data": {"train": {"number of images": 8}},
        "scaler": scaler.state_dict(),
        "rng": rng_state(shuffle=np.random.default_rng(3)),
        "epoch": 0,
        "best": 0.25,
        "options": {"img": 320, "weights": None},
        "hyp": {"lr0": 0.01},
        "scale": 0.5,
        "versions": {"torch": str(torch.__version__)},
        **others,
    }


def same(a, b):
    assert list(a) == list(b)
    for key in a:
        assert a[key].dtype == b[key].dtype
        assert torch.equal(a[key], b[key])


@pytest.fixture
def saved(tmp_path):
    path, made = tmp_path / "last.pt", content()
    save_checkpoint(path, made)
    return path, made


def test_the_scale_of_training_is_read_where_there_is_one(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, content())
    assert training_scale(path) == 0.5
    old = torch.load(path, weights_only=True)
    del old["scale"]
    torch.save(old, path)
    assert load_checkpoint(path)["scale"] is None
    with pytest.raises(InputError, match=r"last\.pt: does not tell at what scale it was trained"):
        training_scale(path)


def test_a_round_trip_gives_the_same_state(saved):
    path, made = saved
    read = load_checkpoint(path)
    assert read["format"] == FORMAT
    for key in ("config", "names", "epoch", "best", "options", "hyp", "versions", "scaler", "place", "data", "updates"):
        assert read[key] == made[key]
    same(read["model"], made["model"])
    same(read["ema"], made["ema"])
    model, optimizer, *_ = trained()
    model.load_state_dict(read["model"])
    optimizer.load_state_dict(read["optimizer"])
    for index, state in made["optimizer"]["state"].items():
        same(optimizer.state_dict()["state"][index], state)
    assert [entry.name for entry in path.parent.iterdir()] == ["last.pt"]


def test_torch_opens_it_with_weights_only(saved):
    path, made = saved
    same(torch.load(path, weights_only=True)["model"], made["model"])


def test_absent_keys_are_none_and_layout_is_kept(tmp_path):
    weight = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    save_checkpoint(tmp_path / "x.pt", {"config": {}, "names": [], "model": {"weight": weight}})
    read = load_checkpoint(tmp_path / "x.pt")
    assert read["optimizer"] is None
    assert read["model"]["weight"].stride() == weight.stride()


def test_a_view_does_not_bring_the_storage_behind_it(tmp_path):
    large = torch.zeros(1 << 20)
    save_checkpoint(tmp_path / "x.pt", {"config": {}, "names": [], "model": {"weight": large[:10]}})
    assert (tmp_path / "x.pt").stat().st_size < 10_000


@pytest.mark.parametrize(
    "wrong",
    [
        {"best": np.float64(0.5)},
        {"options": {"save_dir": __file__, "path": object()}},
        {"hyp": {(1, 2): 3}},
        {"extra": 1},
        {"model": None, "ema": None},
        {"epoch": "3"},
        {"hyp": {"x": torch.zeros(2, dtype=torch.complex64)}},
    ],
)
def test_our_own_mistakes_are_assertions_and_leave_the_old_file(saved, wrong):
    path, _ = saved
    before = path.read_bytes()
    with pytest.raises(AssertionError):
        save_checkpoint(path, content(**wrong))
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("failing", ["write", "fsync", "interrupt", "replace"])
def test_a_failed_save_keeps_the_old_file(saved, monkeypatch, failing):
    path, _ = saved
    before = path.read_bytes()
    error = KeyboardInterrupt() if failing == "interrupt" else OSError(28, "No space left on device")

    def fail(*_):
        raise error

    original = torch.save
    place = {"write": "torch.save", "fsync": "os.fsync", "interrupt": "os.fsync", "replace": "pathlib.Path.replace"}
    full = type("Full", (), {"write": fail, "flush": lambda _: None})()
    monkeypatch.setattr(place[failing], (lambda value, _: original(value, full)) if failing == "write" else fail)
    with pytest.raises((InputError, KeyboardInterrupt)) as caught:
        save_checkpoint(path, content(epoch=1))
    if failing != "interrupt":
        assert str(caught.value) == f"{path}: the checkpoint could not be written: No space left on device"
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["last.pt"]


def test_a_folder_that_is_missing_is_told(tmp_path):
    with pytest.raises(InputError, match=r"none/x\.pt: the checkpoint could not be written: No such file"):
        save_checkpoint(tmp_path / "none" / "x.pt", content())


@pytest.mark.parametrize(
    ("foreign", "reason"),
    [
        ({"a": torch.ones(1)}, "expected a checkpoint of format 'yolov5-spd/1', found another program's file"),
        (torch.ones(1), "found another program's file"),
        ({"format": "yolov5-spd/9"}, "found format 'yolov5-spd/9'"),
        ({"format": FORMAT}, "keys missing or unknown: 'best', 'config'"),
        (content() | {"format": FORMAT, "evil": 1}, "keys missing or unknown: 'evil'"),
        (content() | {"format": FORMAT, "names": [1]}, "names as a list of texts"),
        (content() | {"format": FORMAT, "ema": {"a": 1}}, "dict of tensors"),
        (content() | {"format": FORMAT, "best": torch.float32}, "asks for 'torch.float32'"),
        (
            content() | {"format": FORMAT, "options": {"x": torch.FloatStorage}},
            r"content\['options'\]\['x'\]: expected",
        ),
    ],
)
def test_foreign_content_is_one_line(tmp_path, foreign, reason):
    path = tmp_path / "x.pt"
    torch.save(foreign, path)
    with pytest.raises(InputError, match=reason) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_read_weights_prefers_the_ema_in_float32(saved):
    path, made = saved
    weights = read_weights(path)
    assert (weights.config, weights.names, weights.source) == (CONFIG, ["cell", "plate"], path)
    same(weights.state_dict, made["ema"])
    save_checkpoint(path, {"config": CONFIG, "names": [], "model": {"a": torch.ones(2).half()}})
    same(read_weights(path).state_dict, {"a": torch.ones(2)})


def test_strip_leaves_the_ema_in_half_precision(saved, tmp_path):
    path, made = saved
    made["ema"]["1.running_var"][0] = 1e6  # beyond half precision
    best = tmp_path / "best.pt"
    save_checkpoint(best, strip(made))
    read = load_checkpoint(best)
    assert best.stat().st_size < path.stat().st_size / 2
    gone = "data model optimizer place planned rng scaler updates"
    assert sorted(key for key, value in read.items() if value is None) == gone.split()
    assert read["ema"]["0.weight"].dtype == torch.float16
    assert read["ema"]["1.num_batches_tracked"].dtype == torch.int64
    assert read["ema"]["1.running_var"][0] == 1e6
    assert (read["best"], read["hyp"], read["names"]) == (0.25, {"lr0": 0.01}, ["cell", "plate"])
    weights = read_weights(best)
    assert all(value.dtype != torch.float16 for value in weights.state_dict.values())
    assert torch.allclose(weights.state_dict["0.weight"], made["ema"]["0.weight"], atol=1e-3)


def test_transfer_copies_by_name_and_shape(tmp_path):
    target = net(4)
    source = {key: torch.full_like(value, 3) for key, value in net(4).state_dict().items()}
    source["3.weight"] = torch.zeros(5, 4, 1, 1)
    source["9.weight"] = source.pop("1.weight")
    kept = {key: value.clone() for key, value in target.state_dict().items()}
    report = transfer(target, Weights(CONFIG, [], source, tmp_path), exclude=["running_var"])
    assert report.copied == ["0.weight", "0.bias", "1.bias", "1.running_mean", "1.num_batches_tracked", "3.bias"]
    assert report.excluded == ["1.running_var"]
    assert report.missing == ["1.weight"]
    assert report.unused == ["9.weight"]
    assert report.mismatched == {"3.weight": ((5, 4, 1, 1), (2, 4, 1, 1))}
    for key, value in target.state_dict().items():
        assert torch.equal(value, source[key] if key in report.copied else kept[key])
    assert str(report).splitlines() == [
        "6 of 9 tensors carried over, 1 of another shape (3.weight: (5, 4, 1, 1) for (2, 4, 1, 1)), "
        "1 missing (1.weight), 1 unused (9.weight), 1 left out (1.running_var)",
        "  1.running_var: 1 of 1 tensors anew: 1.running_var left out",
        "  1.weight: 1 of 1 tensors anew: 1.weight missing",
        "  3.weight: 1 of 1 tensors anew: 3.weight (5, 4, 1, 1) there, (2, 4, 1, 1) here",
    ]


def test_transfer_tells_each_row_that_starts_anew(tmp_path):
    source = load_model("yolov5-spd-n.yaml", names=["a"])
    target = load_model("yolov5-spd-n.yaml", names=["a", "b"])
    report = transfer(target, Weights({}, [], source.state_dict(), tmp_path), exclude=["anchors"])
    first, *rows = str(report).splitlines()
    assert first.startswith("342 of 349 tensors carried over, 6 of another shape")
    assert rows == [
        "  model.30: 7 of 7 tensors anew: anchors left out, m.0.weight (18, 64, 1, 1) there, (21, 64, 1, 1) here, "
        "m.0.bias (18,) there, (21,) here, ..."
    ]


def test_a_whole_transfer_reads_briefly():
    assert str(TransferReport(["a", "b"], [], [], [], {})) == "2 of 2 tensors carried over"


def draw(generator):
    return torch.rand(3).tolist(), random.random(), generator.random(3).tolist(), int(generator.integers(1 << 30))


def test_rng_goes_on_where_it_was(tmp_path):
    generator = np.random.default_rng(5)
    generator.integers(7, dtype=np.uint32)  # leaves half a number waiting
    made = content()
    save_checkpoint(tmp_path / "x.pt", made | {"rng": rng_state(data=generator)})
    expected = draw(generator)
    other = np.random.default_rng(6)
    restore_rng(load_checkpoint(tmp_path / "x.pt")["rng"], data=other)
    assert draw(other) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"torch": torch.zeros(3, dtype=torch.uint8)},
        {"python": (3, (1, 2), None)},
        {"numpy": {}},
        {"numpy": {"data": {}}},
    ],
)
def test_a_foreign_rng_state_is_one_line(change):
    generator = np.random.default_rng(0)
    with pytest.raises(InputError, match="rng: expected a state of the random generators"):
        restore_rng(rng_state(data=generator) | change, data=generator)


def test_flipped_bytes_give_the_checkpoint_or_one_line(saved, tmp_path):
    path, made = saved
    refusals = []
    for flipped in flipped_files(path, tmp_path / "flipped.pt", 500):
        try:
            same(load_checkpoint(flipped)["model"], made["model"])
        except InputError as error:
            refusals.append(str(error))
    assert len(refusals) > 100  # the others hit the zip's padding
    assert not any("\n" in line for line in refusals)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50_spd"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_authors_resnets_are_recognised_by_their_tensors(arch: str, prefix: str, tmp_path: Path) -> None:
    model = build_resnet(arch, 200)
    torch.save({prefix + key: value for key, value in model.state_dict().items()}, tmp_path / "x.pth")
    weights = read_weights(tmp_path / "x.pth")
    assert weights.config["arch"] == arch
    assert weights.config["std"] == [0.2764, 0.2689, 0.2816]
    assert all(torch.equal(value, weights.state_dict[key]) for key, value in model.state_dict().items())
    assert transfer(build_resnet(arch, 200), weights).missing == []


@torch.inference_mode()
@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_torchvisions_resnets_become_ours(arch: str, tmp_path: Path) -> None:
    reference = getattr(torchvision.models, arch)(num_classes=7).eval()
    torch.save(reference.state_dict(), tmp_path / "x.pth")
    weights = read_weights(tmp_path / "x.pth")
    assert (weights.config["arch"], weights.config["stem"], weights.config["imgsz"]) == (arch, "imagenet", 224)
    model = ResNet(weights.config | {"mean": [0.0] * 3, "std": [1.0] * 3})
    model.load_state_dict(weights.state_dict)
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(model.eval()(images), reference(images))


def test_torchvisions_deeper_resnets_are_of_no_kind(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet34(num_classes=2).state_dict(), tmp_path / "x.pth")
    with pytest.raises(InputError, match="holds a ResNet that is none of resnet18, resnet50, "):
        read_weights(tmp_path / "x.pth")


@pytest.mark.parametrize("gone", ["conv1.0.weight", "fc.weight"])
def test_resnets_without_an_end_are_of_no_kind(gone: str, tmp_path: Path) -> None:
    state = build_resnet("resnet18", 2).state_dict()
    del state[gone]
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(InputError, match="holds a ResNet that is none of"):
        read_weights(tmp_path / "x.pth")


def test_the_authors_cifar_network_has_the_colours_that_it_was_trained_with(tmp_path: Path) -> None:
    torch.save(build_resnet("resnet18_spd", 100).state_dict(), tmp_path / "x.pth")
    assert read_weights(tmp_path / "x.pth").config["mean"] == [0.5071, 0.4865, 0.4409]
