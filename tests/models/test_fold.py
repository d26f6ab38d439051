"""Folding and fusing: the same outputs and gradients as the plain model, whatever stands around space-to-depth."""

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.fold import FoldedConv, depth_to_kernel, fold, fuse
from models.yolo import LAYERS, Layer, Model, _unchanged, load_model
from utils.options import ROOT

YAMLS = [*sorted((ROOT / "models").glob("**/*spd*.yaml")), ROOT / "models/yolov5n.yaml"]


def narrow(path: Path) -> Model:
    """A YAML's model at an eighth of its width, in which folding has the same work to do."""
    import yaml

    config = yaml.safe_load(path.read_text()) | {"nc": 4, "width_multiple": 0.125, "depth_multiple": 0.1}
    torch.manual_seed(0)
    return Model(config, source=path.name)


def disturb(model: Model) -> Model:
    """Give the batch normalisations statistics and weights that are not the initial ones."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


def folds(model: Model) -> int:
    assert model.folded is not None
    return sum(isinstance(module, FoldedConv) for module in model.folded[0].modules())


def check(model: Model, size: int = 64) -> int:
    """Compare outputs, gradients and running statistics with the plain model; returns the number of folds."""
    plain = disturb(model)
    folded = fold(copy.deepcopy(plain))
    assert list(folded.state_dict()) == list(plain.state_dict())
    images = torch.rand(2, 3, size, size)
    assert_same(folded.eval()(images), plain.eval()(images))
    assert_same(fold(fuse(plain), frozen=True)(images), plain(images))
    losses = [sum(level.square().mean() for level in m.double().train()(images.double())) for m in (folded, plain)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[0], losses[1])
    for (name, a), b in zip(folded.named_parameters(), plain.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-10, msg=name)
    for a, b in zip(folded.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    return folds(folded)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_yamls(path: Path) -> None:
    count = check(narrow(path))
    assert count == (0 if path.stem == "yolov5n" else 15 if path.stem.endswith("p2") else 13)


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_kernel_layout(kernel: int, scale: int) -> None:
    from models.blocks import space_to_depth

    weight = torch.rand(5, 3 * scale**2, kernel, kernel, dtype=torch.double)
    x = torch.rand(1, 3, 4 * scale, 6 * scale, dtype=torch.double)
    expected = nn.functional.conv2d(space_to_depth(x, scale), weight, padding=kernel // 2)
    found = nn.functional.conv2d(x, depth_to_kernel(weight, scale), stride=scale, padding=kernel // 2 * scale)
    torch.testing.assert_close(found, expected)


class Doubling(nn.Module):
    """A layer of somebody's own that decides by the values it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.mean() > 0 else x


def random_config(rng: random.Random) -> dict[str, Any]:
    """A network in which space-to-depth stands before convolutions, joins, pools, sums and several readers."""
    scale = rng.choice([2, 3])
    backbone: list[list[Any]] = [
        [-1, 1, "Conv", [8, 3, 1]],  # 0
        [-1, 1, "SPD", [scale]],  # 1
        [0, 1, "Conv", [8, scale, scale, 0]],  # 2 the same size by another way
        [1, 1, *rng.choice([("Conv", [8, 1]), ("Conv", [8, 3]), ("Conv", [8, 5]), ("C3", [8])])],  # 3
        [rng.choice([[1, 2], [2, 1], [2, 1, 2], [1, 1]]), 1, "Concat", [1]],  # 4
        [4, 1, *rng.choice([("Conv", [8, 1]), ("Conv", [8, 3]), ("C3", [8]), ("DWConv", [8, 3]), ("Conv", [8, 3, 2])])],
    ]
    reader = rng.choice(["nn.MaxPool2d", "Doubling", "Conv", None])
    if reader == "nn.MaxPool2d":
        backbone.append([1, 1, "nn.MaxPool2d", [3, 1, 1]])
    elif reader:
        backbone.append([1, 1, reader, [8, 3, 1] if reader == "Conv" else []])
    else:
        backbone.append([4, 1, "nn.BatchNorm2d", []])
    strided = backbone[5][3][-1:] == [2] and backbone[5][2] == "Conv"
    fused = [[3, 6] if strided else [3, 5, 6], 1, "Concat", [1]]
    return {
        "nc": 2,
        "anchors": [[10, 13, 16, 30]],
        "backbone": backbone,
        "head": [fused, [-1, 1, "Conv", [8, 1]], [[-1], 1, "Detect", ["nc", "anchors"]]],
    }


@pytest.mark.parametrize("seed", range(24))
def test_random_networks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYERS, "Doubling", Layer(Doubling, _unchanged))
    monkeypatch.setattr(Model, "_measure_strides", lambda *_: [2])  # meta tensors have no mean to decide by
    torch.manual_seed(seed)
    assert check(Model(random_config(random.Random(seed))), size=24) >= 1


def test_copies_and_reloads_stay_folded_on_their_own_weights() -> None:
    model = fold(narrow(YAMLS[0]))
    other = copy.deepcopy(model)
    images = torch.rand(1, 3, 64, 64)
    before = model.eval()(images)
    other.load_state_dict(
        {key: value * 0.5 if value.is_floating_point() else value for key, value in model.state_dict().items()}
    )
    assert_same(model(images), before, 0.0)
    plain = copy.deepcopy(other)
    plain.folded = None
    assert_same(other.eval()(images), plain.eval()(images))
    assert not torch.equal(other(images)[0], before[0])


def test_an_odd_side_is_refused() -> None:
    model = fold(load_model("yolov5-spd-n.yaml"))
    with pytest.raises(AssertionError, match="not divisible"):
        model(torch.rand(1, 3, 63, 64))


def test_joined_normalisation_and_activation_keep_statistics_and_one_map_less() -> None:
    torch.manual_seed(0)
    plain = load_model("yolov5-spd-n.yaml").double().train()
    folded = fold(copy.deepcopy(plain))
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    kept = []
    for model in (plain, folded):
        sizes: dict[int, int] = {}

        def note(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            if tensor.ndim == 4 and len(tensor) == len(images):  # maps, not parameters
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            raw = model(images)
        kept.append(sum(sizes.values()))
        torch.stack([level.sin().sum() for level in raw]).sum().backward()
    assert kept[1] < 0.72 * kept[0]
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(folded.state_dict()[name], value, rtol=1e-9, atol=1e-12)
    for one, other in zip(plain.parameters(), folded.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-6, atol=1e-9)
    norms = [node for node in folded.folded[0].graph.nodes if str(node.target).endswith(".activated")]
    assert len(norms) == sum(isinstance(module, torch.nn.BatchNorm2d) for module in plain.modules())


def test_a_frozen_row_in_training_gets_no_gradient_folded() -> None:
    model = fold(load_model("yolov5-spd-n.yaml").train())
    model.model[0].requires_grad_(False)
    torch.stack([level.sum() for level in model(torch.rand(2, 3, 64, 64))]).sum().backward()
    assert all(parameter.grad is None for parameter in model.model[0].parameters())
    assert all(parameter.grad is not None for parameter in model.model[1].parameters())
