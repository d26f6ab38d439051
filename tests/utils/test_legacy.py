"""YOLOv5's pickles as data: the same tensors that the module has, and no class of the file ever made."""

import datetime
import pathlib
import pickle
import types

import numpy as np
import pytest
import torch
from torch import nn

from tests.utils.damage import flipped_files
from utils.checkpoint import read_weights
from utils.options import InputError


class _ForeignPickler(pickle._Pickler):
    """Writes a class under the name it claims, without looking for it: YOLOv5's modules need not exist."""

    def save_global(self, obj, name=None):
        self.write(pickle.GLOBAL + f"{obj.__module__}\n{name or obj.__qualname__}\n".encode())
        self.memoize(obj)

    dispatch = pickle._Pickler.dispatch | {type: save_global, types.FunctionType: save_global}


def save(content, path):
    torch.save(content, path, pickle_module=types.SimpleNamespace(Pickler=_ForeignPickler, __name__="pickle"))
    return path


def foreign(qualified):
    """A module class that claims to be `models.common.Conv` or the like."""
    module, _, name = qualified.rpartition(".")
    return type(name, (nn.Module,), {"__module__": module})


SHARED_ACTIVATION = nn.SiLU()


def conv(ins, outs):
    block = foreign("models.common.Conv")()
    block.conv = nn.Conv2d(ins, outs, 3, bias=False)
    block.bn = nn.BatchNorm2d(outs)
    block.act = SHARED_ACTIVATION  # v7 gives every Conv the same object
    return block


def model(kind="Model", **attributes):
    detect = foreign("models.yolo.Detect")()
    detect.m = nn.ModuleList([nn.Conv2d(8, 21, 1)])
    detect.register_buffer("anchors", torch.rand(1, 3, 2))
    detect.register_buffer("anchor_grid", torch.rand(1, 3, 2))
    detect.register_buffer("grid", torch.rand(3), persistent=False)
    whole = foreign(f"models.yolo.{kind}")()
    whole.model = nn.Sequential(conv(3, 8), foreign("models.common.space_to_depth")(), detect)
    whole.yaml = {
        "nc": 2, "depth_multiple": 0.33, "width_multiple": 0.25, "anchors": [[1, 2, 3, 4, 5, 6]], "ch": 3,
        "backbone": [[-1, 1, "Conv", [64, 3]], [-1, 1, "space_to_depth", [1]]], "head": [[-1, 1, "Detect", ["nc"]]],
    }  # fmt: skip
    whole.names, whole.stride, whole.hyp = ["cell", "plate"], torch.tensor([8.0]), {"lr0": 0.01}
    vars(whole).update(attributes)  # past nn.Module's own checks
    return whole


def checkpoint(net, **others):
    fitness = np.float64(0.5)
    return {"epoch": 7, "best_fitness": fitness, "model": net.half(), "ema": None, "date": "2022-11-22"} | others


@pytest.fixture
def valid(tmp_path):
    net = model()
    return net, save(checkpoint(net), tmp_path / "yolov5.pt")


def test_reads_what_the_module_holds(valid):
    net, path = valid
    read = read_weights(path)
    expected = {key: value for key, value in net.state_dict().items() if "anchor_grid" not in key}
    assert list(read.state_dict) == list(expected)
    assert "model.0.conv.weight" in expected
    assert "model.2.m.0.bias" in expected
    for key, value in read.state_dict.items():
        assert value.dtype == (torch.float32 if expected[key].is_floating_point() else torch.int64)
        assert torch.equal(value, expected[key].to(value.dtype))
    assert (read.config, read.names, read.source) == (net.yaml, ["cell", "plate"], path)


def test_the_ema_is_preferred_and_dict_names_are_taken(tmp_path):
    ema = model("DetectionModel", names={0: "a", 1: "b"})
    options = {"save_dir": pathlib.PurePosixPath("runs/exp")}
    path = save(checkpoint(model(), ema=ema.half(), opt=options, when=datetime.date(2022, 1, 1)), tmp_path / "last.pt")
    read = read_weights(path)
    assert read.names == ["a", "b"]
    assert torch.equal(read.state_dict["model.0.conv.weight"], ema.state_dict()["model.0.conv.weight"].float())


def test_strides_which_nothing_reads_may_be_odd(tmp_path):
    path = save(checkpoint(model(stride=torch.tensor([float("nan")]))), tmp_path / "x.pt")
    assert read_weights(path).names == ["cell", "plate"]


def test_numpy_of_both_generations(tmp_path):
    old = np.array([0.25])
    path = save(checkpoint(model(), best_fitness=old), tmp_path / "x.pt")
    assert read_weights(path).names == ["cell", "plate"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"model": foreign("models.common.AutoShape")()}, "asks for 'models.common.AutoShape'"),
        ({"model": foreign("utils.evil.Conv")()}, "asks for 'utils.evil.Conv'"),
        ({"model": {"a": torch.ones(1)}}, "expected a pickled model"),
        ([1], "expected a pickled model"),
        ({"model": nn.Conv2d(1, 1, 1)}, "expected the model's YAML"),
        ({"model": model(names=["one"])}, "as many class names"),
        ({"model": model(names={1: "a", 2: "b"})}, "as many class names"),
        ({"model": model(yaml={"nc": 2})}, "expected the model's YAML with the keys"),
        ({"model": model(yaml={"nc": np.int64(2)})}, "found 'numpy"),
        ({"model": model(_buffers=[1])}, "_buffers of a models.yolo.Model is a list"),
    ],
)
def test_other_content_is_one_line(tmp_path, content, reason):
    with pytest.raises(InputError, match=reason) as caught:
        read_weights(save(content, tmp_path / "x.pt"))
    assert "\n" not in str(caught.value)


def test_modules_that_contain_themselves_end(tmp_path):
    net = model()
    net._modules["again"] = net
    with pytest.raises(InputError, match="nested without end"):
        read_weights(save({"model": net}, tmp_path / "x.pt"))


def test_modules_shared_exponentially_end(tmp_path):
    net = model()
    layer = nn.Sequential()
    for _ in range(30):
        layer = nn.Sequential(layer, layer)
    net._modules["many"] = layer
    with pytest.raises(InputError, match="nested without end"):
        read_weights(save({"model": net}, tmp_path / "x.pt"))


def test_views_of_one_storage_do_not_multiply(tmp_path):
    net, weight = model(), nn.Parameter(torch.ones(1000))
    net.extra = nn.Sequential(*[nn.Identity() for _ in range(200)])
    for layer in net.extra:
        layer.register_parameter("weight", weight)
    with pytest.raises(InputError, match="more elements"):
        read_weights(save({"model": net}, tmp_path / "x.pt"))


def test_flipped_bytes_give_the_weights_or_one_line(valid, tmp_path):
    net, path = valid
    weight = net.model[0].conv.weight.float()
    refusals = []
    for flipped in flipped_files(path, tmp_path / "flipped.pt", 500):
        try:
            assert torch.equal(read_weights(flipped).state_dict["model.0.conv.weight"], weight)
        except InputError as error:
            refusals.append(str(error))
    assert len(refusals) > 250  # the others hit the zip's padding
    assert not any("\n" in line for line in refusals)
