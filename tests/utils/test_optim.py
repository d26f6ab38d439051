"""Schedule, parameter groups, average and early stopping, against their formulae written out."""

import copy
import math

import pytest
import torch
from torch import nn

from models.yolo import load_model
from utils.hyp import Hyp
from utils.optim import EMA, EarlyStopping, Schedule, accumulation, make_optimizer

HYP = Hyp(lr0=0.01, lrf=0.1, warmup_epochs=2, momentum=0.9, warmup_momentum=0.5, warmup_bias_lr=0.2)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_only_weights_of_convolutions_decay(name: str) -> None:
    model = load_model("yolov5-spd-n.yaml", names=["a"])
    groups = {group["name"]: group for group in make_optimizer(model, name, HYP, batch_size=16).param_groups}
    assert groups["bias"]["weight_decay"] == groups["norm"]["weight_decay"] == 0
    assert groups["weight"]["weight_decay"] == HYP.weight_decay  # 16 images, 4 batches a step: the nominal 64
    assert all(p.ndim == 4 for p in groups["weight"]["params"])
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert len(groups["norm"]["params"]) == norms
    assert len(groups["bias"]["params"]) == norms + 3
    assert sum(len(group["params"]) for group in groups.values()) == len(list(model.parameters()))


@pytest.mark.parametrize(("batch", "expected"), [(1, 64), (16, 4), (20, 3), (64, 1), (128, 1)])
def test_accumulation(batch: int, expected: int) -> None:
    assert accumulation(batch) == expected


@pytest.mark.parametrize("cosine", [False, True])
def test_learning_rate_over_a_run(cosine: bool) -> None:
    schedule = Schedule(HYP, epochs=10, batches=100, batch_size=16, cosine=cosine)
    optimizer = make_optimizer(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)), "SGD", HYP, 16)
    rates, momenta = [], []
    for count in range(1000):
        schedule.apply(optimizer, count)
        rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})
        momenta.append(optimizer.param_groups[0]["momentum"])
    assert schedule.warmup == 200
    assert rates[0] == {"bias": 0.2, "weight": 0.0, "norm": 0.0}
    assert rates[50]["weight"] == pytest.approx(0.01 * 50 / 200)
    assert momenta[0] == 0.5
    assert momenta[100] == pytest.approx(0.7)
    assert momenta[200:] == [0.9] * 800
    for epoch in range(2, 10):
        left = (1 + math.cos(math.pi * epoch / 10)) / 2 if cosine else 1 - epoch / 10
        expected = 0.01 * (0.1 + 0.9 * left)
        assert rates[epoch * 100]["weight"] == pytest.approx(expected)
        assert rates[epoch * 100 + 99]["bias"] == pytest.approx(expected)


def test_accumulation_grows_in_the_warm_up() -> None:
    schedule = Schedule(HYP, epochs=10, batches=100, batch_size=16)
    steps = [schedule.accumulate(count) for count in (0, 60, 130, 199, 200, 999)]
    assert steps == [1, 2, 3, 4, 4, 4]


def test_warm_up_is_a_third_of_a_short_run_at_most() -> None:
    assert Schedule(HYP, epochs=3, batches=10, batch_size=16).warmup == 10
    assert Schedule(Hyp(warmup_epochs=0), epochs=3, batches=10, batch_size=16).warmup == 0


def test_more_epochs_do_not_bring_the_warm_up_back() -> None:
    assert Schedule(HYP, epochs=100, batches=10, batch_size=16).warmup == 100
    assert Schedule(HYP, epochs=100, batches=10, batch_size=16, planned=3).warmup == 10


def test_average_follows_its_formula() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    average = EMA(model, tau=10)
    expected = {key: value.clone().double() for key, value in model.state_dict().items()}
    for update in range(1, 6):
        model.train()(torch.randn(4, 2, 3, 3))  # moves the statistics
        with torch.no_grad():
            model[0].weight += torch.randn_like(model[0].weight)
        average.update()
        decay = 0.9999 * (1 - math.exp(-update / 10))
        for key, value in model.state_dict().items():
            expected[key] = expected[key] * decay + value.double() * (1 - decay) if value.is_floating_point() else value
    for key, value in average.model.state_dict().items():
        torch.testing.assert_close(value.double(), expected[key].double(), rtol=1e-5, atol=1e-6)
    assert not any(p.requires_grad for p in average.model.parameters())
    assert copy.deepcopy(average).updates == 5


def test_early_stopping() -> None:
    stopper = EarlyStopping(patience=2)
    better = [stopper.improves(fitness, epoch) for epoch, fitness in enumerate([math.nan, 0.1, 0.3, 0.2, 0.3, 0.1])]
    assert better == [False, True, True, False, True, False]
    assert (stopper.best, stopper.best_epoch) == (0.3, 4)
    assert [stopper.exhausted(epoch) for epoch in (5, 6)] == [False, True]
    assert not EarlyStopping(patience=0).exhausted(1000)
