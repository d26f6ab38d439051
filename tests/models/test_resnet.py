"""ResNets: the figures measured on the authors' code, folded against plain, and what their configs may say."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.fold import FoldedConv, fold, fuse
from models.resnet import ARCHITECTURES, ResNet, build_resnet, resnet18, resnet18_spd, resnet50, resnet50_spd
from models.summary import parameters
from tests.formula import fill_by_formula, formula_images
from utils.options import InputError

KINDS = [(arch, stem, False) for arch in ARCHITECTURES for stem in ("small", "imagenet")]
KINDS += [("resnet18_spd", "small", True), ("resnet50_spd", "imagenet", True)]


@pytest.fixture(scope="module", params=["resnet18_spd", "resnet50_spd"])
def measured(request: Any, resnet_reference: dict[str, Any]) -> tuple[ResNet, dict[str, Any]]:
    (expected,) = (figures for name, figures in resnet_reference.items() if name.startswith(request.param))
    model = build_resnet(request.param, expected["state_dict"]["fc.weight"][0])
    return fill_by_formula(model).eval(), expected


def test_parameters_keys_and_shapes_are_the_authors(measured: tuple[ResNet, dict[str, Any]]) -> None:
    model, expected = measured
    assert parameters(model) == expected["params"]
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == expected["state_dict"]


@torch.inference_mode()
def test_logits_are_the_authors(measured: tuple[ResNet, dict[str, Any]]) -> None:
    model, expected = measured
    logits = model(formula_images(*expected["input"]))
    np.testing.assert_allclose(logits[:, :8], expected["logits_first8"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits.double().abs().sum(), expected["logits_abs_sum"], rtol=1e-4)


@pytest.mark.parametrize(
    ("build", "nc", "size", "count", "gmacs"),
    [
        (resnet18, 200, 64, 11_271_432, 2.232),
        (resnet50, 10, 32, 23_520_842, 1.312),
        (resnet18_spd, 200, 64, 20_565_576, 1.067),
        (resnet50_spd, 100, 32, 27_838_436, 0.451),
    ],
)
def test_costs_are_those_of_the_authors_networks(build: Any, nc: int, size: int, count: int, gmacs: float) -> None:
    model = build(nc)
    assert parameters(model) == count
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.to("meta")(torch.empty(1, 3, size, size, device="meta"))
    # the reference counts normalisations as well
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=0.02)


@pytest.mark.parametrize(("arch", "stem", "spd_shortcut"), KINDS)
def test_folded_and_plain_give_the_same(arch: str, stem: str, spd_shortcut: bool) -> None:
    torch.manual_seed(0)
    model = build_resnet(arch, 5, stem=stem, spd_shortcut=spd_shortcut, mean=[0.5] * 3, std=[0.2, 0.3, 0.4]).double()
    images = torch.rand(3, 3, 64, 64, dtype=torch.float64)
    folded = fold(copy.deepcopy(model))
    losses = []
    for one in (model, folded):
        loss = one(images).square().sum()
        loss.backward()
        losses.append(loss)
    torch.testing.assert_close(*losses)
    for plain, other in zip(model.parameters(), folded.parameters(), strict=True):
        torch.testing.assert_close(other.grad, plain.grad)
    model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(fold(fuse(model), frozen=True)(images), model(images))
    graph = folded.folded[0]
    count = sum(isinstance(module, FoldedConv) for module in graph.modules())
    stems = {"small": 1, "imagenet": 2}[stem]
    assert count == (stems + 3 * spd_shortcut if arch.endswith("_spd") else 0)


def test_images_are_normalised_as_the_config_says() -> None:
    mean, std = [0.4, 0.5, 0.6], [0.1, 0.2, 0.3]
    model = resnet18_spd(3, mean=mean, std=std).eval()
    plain = ResNet(model.config | {"mean": [0.0] * 3, "std": [1.0] * 3}).eval()
    assert model.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(model.state_dict())
    images = torch.rand(2, 3, 32, 32)
    normal = (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.inference_mode():
        torch.testing.assert_close(model(images), plain(normal), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "resnet34"}, "x: arch: expected one of resnet18, resnet50, .*, found 'resnet34'"),
        ({"stem": "large"}, "x: stem: expected one of small, imagenet, found 'large'"),
        ({"spd_shortcut": True}, "x: spd_shortcut: resnet18 has no space-to-depth"),
        ({"nc": 0}, "x: nc: expected a number of classes, found 0"),
        ({"nc": "ten"}, "x: nc: expected int, found 'ten'"),
        ({"std": [1.0, 0.0, 1.0]}, "x: std: expected three"),
        ({"depth": 3}, "x: unknown key 'depth'"),
    ],
)
def test_a_config_of_no_such_network_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ResNet({"arch": "resnet18", "nc": 3} | changes, source="x")
