"""Lifting: the SPD model gives what the strided one gives, whatever the graph; what cannot be lifted starts anew."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from models.fold import depth_to_kernel, fold
from models.inherit import kernel_to_depth
from models.yolo import Model
from utils.checkpoint import TransferReport, Weights, read_weights, save_checkpoint
from utils.lift import LiftReport, Options, lift, main
from utils.options import ROOT, InputError
from utils.runs import open_model, start_model

NAMES = ["car", "dog", "cup", "pen"]
PAIRS = [
    ("yolov5n.yaml", "yolov5-spd-n.yaml"),
    ("yolov5s.yaml", "yolov5-spd-s.yaml"),
    ("yolov5m.yaml", "yolov5-spd-m.yaml"),
    ("yolov5l.yaml", "yolov5-spd-l.yaml"),
    ("yolov5n.yaml", "hub/space_depth_n.yaml"),
    ("hub/yolov5-p2.yaml", "hub/yolov5-spd-p2.yaml"),
]
BACKBONE = [[-1, 1, "Conv", [8, 6, 2, 2]], [-1, 1, "Conv", [16, 3, 2]], [-1, 1, "C3", [16]]]
SPD_BACKBONE = [[-1, 1, "Focus", [8, 3]], [-1, 1, "Conv", [16, 3, 1]], [-1, 1, "SPD", []], [-1, 1, "C3", [16]]]


def narrow(name: str, **changes: Any) -> dict[str, Any]:
    """A YAML of the project at an eighth of its width, with its own depth."""
    return yaml.safe_load((ROOT / "models" / name).read_text()) | {"nc": 4, "width_multiple": 0.125} | changes


def small(*rows: list[Any], inputs: tuple[int, ...] = (-1,)) -> dict[str, Any]:
    """A model of these rows and a head."""
    head = [[list(inputs), 1, "Detect", ["nc", "anchors"]]]
    return {"nc": 4, "anchors": [[10, 13, 16, 30]] * len(inputs), "backbone": list(rows), "head": head}


def strided(config: dict[str, Any], names: list[str] = NAMES) -> tuple[Model, Weights]:
    """A model far from its initialisation, its statistics and anchors too, and its weights."""
    torch.manual_seed(1)
    model = Model(config, names=names).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    for convolution in model.head.m:
        nn.init.normal_(convolution.bias)
    model.head.anchors *= torch.empty_like(model.head.anchors).uniform_(0.8, 1.2)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    return model, Weights(model.config, names, state, Path("strided.pt"))


def fresh(config: dict[str, Any], names: list[str] = NAMES) -> Model:
    torch.manual_seed(2)
    return Model(config, names=names)


@torch.no_grad()
def decode(model: Model, images: Tensor) -> Tensor:
    return model.decode(model.eval()(images))


def difference(new: Model, old: Model, size: int = 128) -> float:
    """Largest difference of decoded outputs, relative to the largest of each."""
    images = torch.rand(2, int(old.config.get("ch", 3)), size, size).to(next(new.parameters()).dtype)
    a, b = decode(new, images), decode(old, images)
    return float(((a - b).abs().amax((0, 1)) / b.abs().amax((0, 1))).max())


def check(old_config: dict[str, Any], new_config: dict[str, Any]) -> LiftReport:
    """Lift and expect the same outputs, with nothing started anew."""
    old, weights = strided(old_config)
    new = fresh(new_config)
    report = lift(weights, new)
    assert report is not None
    assert not any(row.anew for row in report.rows)
    assert difference(new, old) < 1e-5
    assert difference(new.double(), old.double()) < 1e-12
    assert report.difference is not None
    assert report.difference < 1e-5
    return report


@pytest.mark.parametrize(("old", "new"), PAIRS, ids=[Path(new).stem for _, new in PAIRS])
def test_pairs_of_the_project(old: str, new: str) -> None:
    report = check(narrow(old), narrow(new))
    assert len(report.lifted) == (8 if new.endswith("p2.yaml") else 7)
    assert sum(len(row.carried) for row in report.rows) == len(Model(narrow(old)).state_dict())


def test_only_sub_map_0_0_is_read() -> None:
    _, weights = strided(narrow("yolov5n.yaml"))
    new = fresh(narrow("yolov5-spd-n.yaml"))
    lift(weights, new)
    state, theirs = new.state_dict(), weights.state_dict
    torch.testing.assert_close(state["model.3.cv1.conv.weight"][:, :16], theirs["model.2.cv1.conv.weight"])
    assert not state["model.3.cv2.conv.weight"][:, 16:].any()
    neck = theirs["model.20.cv2.conv.weight"]  # behind a concatenation with the head's P4
    torch.testing.assert_close(state["model.25.cv2.conv.weight"][:, :32], neck[:, :32])
    torch.testing.assert_close(state["model.25.cv2.conv.weight"][:, 128:], neck[:, 32:])
    assert not state["model.25.cv2.conv.weight"][:, 32:128].any()
    torch.testing.assert_close(state["model.25.m.0.cv1.conv.weight"], theirs["model.20.m.0.cv1.conv.weight"])


def test_the_other_sub_maps_learn() -> None:
    _, weights = strided(narrow("yolov5n.yaml"))
    new = fold(fresh(narrow("yolov5-spd-n.yaml")))
    lift(weights, new)
    sum(level.square().mean() for level in new.train()(torch.rand(2, 3, 64, 64))).backward()
    gradient = new.model[3].cv1.conv.weight.grad
    assert (gradient[:, 16:].abs().amax((0, 2, 3)) > 0).all()


@pytest.mark.parametrize("scale", [2, 3])
def test_kernel_to_depth_undoes_depth_to_kernel(scale: int) -> None:
    weight = torch.rand(5, 3 * scale**2, 3, 1)
    torch.testing.assert_close(kernel_to_depth(depth_to_kernel(weight, scale), scale), weight)


UP_AND_POOLED = [
    [-1, 1, "nn.MaxPool2d", [3, 1, 1]],
    [-1, 1, "nn.Upsample", ["None", 2, "nearest"]],
    [-1, 1, "CrossConv", [16]],
]
FORMS: dict[str, tuple[list[list[Any]], list[list[Any]]]] = {  # strided rows, SPD rows
    "SPDConv": (BACKBONE[:2], [SPD_BACKBONE[0], [-1, 1, "SPDConv", [16, 3]]]),
    "SPDConv of 5x5": ([[-1, 1, "Conv", [8, 5, 2]]], [[-1, 1, "SPDConv", [8, 5]]]),
    "SPD then Conv": (BACKBONE, [SPD_BACKBONE[0], [-1, 1, "SPD", []], SPD_BACKBONE[1], BACKBONE[2]]),
    "3x3 in Focus": ([[-1, 1, "Conv", [8, 3, 2]]], [[-1, 1, "Focus", [8, 3]]]),
    "after SPD, SPDConv": ([*BACKBONE[:2], BACKBONE[1]], [*SPD_BACKBONE[:3], [-1, 1, "SPDConv", [16, 3]]]),
    "Detect reads SPD": (BACKBONE[:2], SPD_BACKBONE[:3]),
    "a strided stem that stays": (BACKBONE, [BACKBONE[0], *SPD_BACKBONE[1:]]),
    "SPD in both": ([BACKBONE[0], *SPD_BACKBONE[1:]], SPD_BACKBONE),
    "depthwise": (
        [*BACKBONE[:1], [-1, 1, "DWConv", [8, 3, 2]], BACKBONE[2]],
        [*SPD_BACKBONE[:1], [-1, 1, "DWConv", [8, 3, 1]], [-1, 1, "SPD", []], BACKBONE[2]],
    ),
    "pool and upsampling": ([*BACKBONE[:2], *UP_AND_POOLED], [*SPD_BACKBONE[:3], *UP_AND_POOLED]),
    "repeated rows": ([*BACKBONE[:2], [-1, 2, "Conv", [8, 3]]], [*SPD_BACKBONE[:3], [-1, 2, "Conv", [8, 3]]]),
}


@pytest.mark.parametrize(("old", "new"), FORMS.values(), ids=FORMS)
def test_forms(old: list[list[Any]], new: list[list[Any]]) -> None:
    assert check(small(*old), small(*new)).lifted


@pytest.mark.parametrize("rows", [[[-1, 1, "SPDConv", [8, 3, 3]]], [[-1, 1, "Conv", [8, 3, 1]], [-1, 1, "SPD", [3]]]])
def test_a_stride_of_three(rows: list[list[Any]]) -> None:
    old, weights = strided(small([-1, 1, "Conv", [8, 3, 3]], BACKBONE[2]))
    new = fresh(small(*rows, BACKBONE[2]))
    assert lift(weights, new) is not None
    images = torch.rand(1, 3, 96, 96)
    torch.testing.assert_close(new.eval()(images), old(images), rtol=1e-5, atol=1e-5)


def test_a_pyramid_right_behind_space_to_depth_is_as_wide_as_its_input_and_starts_partly_anew() -> None:
    _, weights = strided(small(*BACKBONE[:2], [-1, 1, "SPPF", [16]]))
    report = lift(weights, fresh(small(*SPD_BACKBONE[:3], [-1, 1, "SPPF", [16]])))
    assert report is not None
    assert [row.row for row in report.rows if row.anew] == [3]
    assert "cv1.conv.weight" in report.rows[2].anew


def test_joins_in_another_order_and_a_model_of_ones_own() -> None:
    """Rows have other numbers, joins another order, a join comes twice, and the head reads its scales the other way."""
    old = small(
        *BACKBONE,  # 2
        [-1, 1, "Conv", [16, 3, 2]],
        [2, 1, "nn.MaxPool2d", [2, 2]],
        [[3, 4], 1, "Concat", [1]],  # 5
        [-1, 1, "C3", [24]],
        [[6, 3, 6], 1, "Concat", [1]],
        [-1, 1, "Conv", [16, 3, 2]],  # 8
        [-1, 1, "Conv", [16, 1]],
        [[8, 9], 1, "Concat", [1]],
        [-1, 1, "GhostConv", [16]],  # 11
        [7, 1, "CrossConv", [16]],
        inputs=(12, 11),
    )
    new = small(
        *SPD_BACKBONE,  # 3
        [3, 1, "nn.MaxPool2d", [2, 2]],
        [3, 1, "Conv", [16, 3, 1]],
        [-1, 1, "SPD", [2]],  # 6
        [[4, 6], 1, "Concat", [1]],
        [-1, 1, "C3", [24]],  # 8
        [[8, 8, 6], 1, "Concat", [1]],
        [9, 1, "CrossConv", [16]],
        [9, 1, "Conv", [16, 3, 1]],
        [-1, 1, "SPD", [2]],  # 12
        [-1, 1, "Conv", [16, 1]],
        [[13, 12], 1, "Concat", [1]],
        [-1, 1, "GhostConv", [16]],
        inputs=(10, 15),
    )
    old["anchors"][1] = [60, 50, 70, 90]
    new["anchors"][1] = [50, 60, 80, 70]
    report = check(old, new)
    assert [row.row for row in report.lifted] == [0, 1, 5, 11]


def test_scales_in_another_order() -> None:
    rows = [[-1, 1, "Conv", [16, 3, 2]], [-1, 1, "C3", [16]]]
    spd_rows = [[-1, 1, "Conv", [16, 3, 1]], [-1, 1, "SPD", []], [-1, 1, "C3", [16]]]
    old, weights = strided(small(*BACKBONE, *rows, inputs=(2, 4)))
    new = fresh(small(*SPD_BACKBONE, *spd_rows, inputs=(6, 3)))
    report = lift(weights, new)
    assert report is not None
    assert report.difference < 1e-5
    fine, coarse = decode(old, torch.ones(1, 3, 64, 64)).split([2 * 256, 2 * 64], 1)
    swapped = decode(new, torch.ones(1, 3, 64, 64))
    torch.testing.assert_close(swapped, torch.cat((coarse, fine), 1), rtol=1e-4, atol=1e-4)


def test_a_kernel_without_room_starts_anew_and_the_rows_after_it_do_not() -> None:
    """SPDConv of 1x1 sees 2x2 pixels: no room for 3x3."""
    old, weights = strided(small(*BACKBONE))
    new = fresh(small(SPD_BACKBONE[0], [-1, 1, "SPDConv", [16, 1]], BACKBONE[2]))
    before = copy.deepcopy(new.state_dict())
    report = lift(weights, new)
    assert report is not None
    assert [(row.row, row.source, bool(row.carried)) for row in report.rows] == [
        (0, 0, True), (1, 1, False), (2, 2, True), (3, 3, True),
    ]  # fmt: skip
    assert report.difference > 1e-3
    assert "row 1 (SPDConv) from row 1, of another kind: 0 tensors carried over, 6 anew (conv.conv.weight" in str(
        report
    )
    for name, tensor in new.model[1].state_dict().items():
        assert torch.equal(tensor, before[f"model.1.{name}"])
    torch.testing.assert_close(new.model[2].cv1.conv.weight, old.model[2].cv1.conv.weight)


def test_a_row_of_another_kind_starts_anew_alone() -> None:
    _, weights = strided(narrow("yolov5n.yaml"))
    config = narrow("yolov5-spd-n.yaml")
    config["backbone"][6] = [-1, 6, "C3Ghost", [256]]
    report = lift(weights, fresh(config))
    assert report is not None
    assert [row.row for row in report.rows if not row.carried] == [6]
    assert len(report.lifted) == 7


def test_a_deeper_row_keeps_its_further_units() -> None:
    _, weights = strided(narrow("yolov5n.yaml"))
    new = fresh(narrow("yolov5-spd-s.yaml", depth_multiple=0.67))
    report = lift(weights, new)
    assert report is not None
    anew = {name for row in report.rows for name in row.anew}
    assert anew
    assert all(name.startswith("m.") for name in anew)


def test_what_a_fourth_scale_adds_starts_anew() -> None:
    """The backbone and the way down are common to P5 and P2 models; the way up reads what only the latter has."""
    old, weights = strided(narrow("yolov5n.yaml"))
    new = fresh(narrow("hub/yolov5-spd-p2.yaml", depth_multiple=0.33))
    before = copy.deepcopy(new.state_dict())
    report = lift(weights, new)
    assert report is not None
    assert [row.row for row in report.rows if row.carried] == [0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 14, 17, 18, 21]
    assert report.difference is None
    assert "row 38 (Detect) without a counterpart" in str(report)
    torch.testing.assert_close(
        new.state_dict()["model.21.cv3.conv.weight"], old.state_dict()["model.17.cv3.conv.weight"]
    )
    for name in ("model.22.conv.weight", "model.38.m.0.bias", "model.38.anchors"):
        assert torch.equal(new.state_dict()[name], before[name])


def outputs(model: Model, kept: list[int]) -> Tensor:
    return decode(model, torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3)))[..., kept]


def test_classes_find_each_other_by_name() -> None:
    old, weights = strided(narrow("yolov5n.yaml"))
    names = ["sun", "pen", "car"]
    new = fresh(narrow("yolov5-spd-n.yaml"), names)
    start = copy.deepcopy(new.head)
    report = lift(weights, new)
    assert report is not None
    expected = outputs(old, [0, 1, 2, 3, 4, 8, 5])
    torch.testing.assert_close(outputs(new, [0, 1, 2, 3, 4, 6, 7]), expected, rtol=1e-4, atol=1e-4)
    for level, before in zip(new.head.m, start.m, strict=True):
        for name, tensor in level.named_parameters():
            ours, theirs = (x.view(3, 8, -1)[:, 5] for x in (tensor, before.get_parameter(name)))
            assert torch.equal(ours, theirs)  # the sun keeps its start
    assert report.rows[-1].anew == ["class sun"]
    assert report.difference < 1e-5


@pytest.mark.parametrize(
    ("names", "pairs", "anew"),
    [
        (["pen", "cup", "dog", "car"], [8, 7, 6, 5], []),
        (["a", "b", "c", "d"], [5, 6, 7, 8], []),  # other names, as many: by their place
        (["a", "b", "c"], [], ["class a", "class b", "class c"]),
    ],
)
def test_number_and_order_of_classes(names: list[str], pairs: list[int], anew: list[str]) -> None:
    old, weights = strided(small(*BACKBONE))
    new = fresh(small(*SPD_BACKBONE), names)
    report = lift(weights, new)
    assert report is not None
    found = outputs(new, [*range(5 + len(pairs))])
    torch.testing.assert_close(found, outputs(old, [*range(5), *pairs]), rtol=1e-4, atol=1e-4)
    assert report.rows[-1].anew == anew
    assert new.names == names


def test_anchors_are_carried_unless_unwanted() -> None:
    old, weights = strided(small(*BACKBONE))
    config = small(*SPD_BACKBONE) | {"anchors": 2}
    new = fresh(config)
    assert lift(weights, new) is not None
    assert torch.equal(new.head.anchors, old.head.anchors)
    torch.testing.assert_close(
        torch.tensor(new.config["anchors"]).view(1, 2, 2), old.head.anchors_in_pixels(), rtol=0, atol=0.006
    )
    other = fresh(config)
    report = lift(weights, other, anchors=False)
    assert report is not None
    assert torch.equal(other.head.anchors, fresh(config).head.anchors)
    assert other.config["anchors"] == 2
    assert report.rows[-1].anew == ["anchors"]
    assert report.difference < 1e-5  # of what does not depend on them


def test_other_numbers_of_anchors_leave_the_head_as_it_was() -> None:
    _, weights = strided(small(*BACKBONE))
    new = fresh(small(*SPD_BACKBONE) | {"anchors": 3})
    report = lift(weights, new)
    assert report is not None
    assert report.rows[-1].carried == []
    assert torch.equal(new.head.m[0].weight, fresh(small(*SPD_BACKBONE) | {"anchors": 3}).head.m[0].weight)


UNLIKE = {
    "strided to strided": ("yolov5n.yaml", narrow("yolov5n.yaml")),
    "SPD to SPD": ("yolov5-spd-n.yaml", narrow("yolov5-spd-n.yaml")),
    "SPD to strided": ("yolov5-spd-n.yaml", narrow("yolov5n.yaml")),
    "another width": ("yolov5n.yaml", narrow("yolov5-spd-n.yaml", width_multiple=0.25)),
    "grey images": ("yolov5n.yaml", narrow("yolov5-spd-n.yaml", ch=1)),
}


@pytest.mark.parametrize(("old", "config"), UNLIKE.values(), ids=UNLIKE)
def test_models_without_a_strided_row_in_common_are_left_alone(old: str, config: dict[str, Any]) -> None:
    _, weights = strided(narrow(old))
    new = fresh(config)
    before = copy.deepcopy(new.state_dict())
    assert lift(weights, new) is None
    assert all(torch.equal(a, b) for a, b in zip(new.state_dict().values(), before.values(), strict=True))


def test_weights_of_a_model_that_does_not_build_are_left_to_the_transfer_by_name() -> None:
    _, weights = strided(small(*BACKBONE))
    config = weights.config | {"backbone": [[-1, 1, "C3TR", [8]]]}
    assert lift(Weights(config, NAMES, weights.state_dict, weights.source), fresh(small(*SPD_BACKBONE))) is None
    part = {key: value for key, value in weights.state_dict.items() if "bias" not in key}
    assert lift(Weights(weights.config, NAMES, part, weights.source), fresh(small(*SPD_BACKBONE))) is None


def test_lifting_draws_no_random_number_and_keeps_the_mode() -> None:
    _, weights = strided(small(*BACKBONE))
    new = fresh(small(*SPD_BACKBONE)).train()
    state = torch.get_rng_state()
    lift(weights, new)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in new.modules())


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A strided checkpoint, its own YAML and that of its SPD form."""
    model, _ = strided(small(*BACKBONE))
    save_checkpoint(tmp_path / "strided.pt", {"config": model.config, "names": NAMES, "ema": model.state_dict()})
    (tmp_path / "strided.yaml").write_text(yaml.safe_dump(small(*BACKBONE)))
    (tmp_path / "spd.yaml").write_text(yaml.safe_dump(small(*SPD_BACKBONE)))
    return tmp_path / "strided.pt", tmp_path / "strided.yaml", tmp_path / "spd.yaml"


def test_training_starts_from_the_lifted_model(files: tuple[Path, Path, Path]) -> None:
    weights, same, spd = files
    names = ["dog", "cat"]
    model, report = start_model(str(weights), str(spd), names)
    assert isinstance(report, LiftReport)
    assert str(report).splitlines()[1].endswith("1 anew (class cat)")
    old = open_model(str(weights))
    torch.testing.assert_close(outputs(model, [*range(6)]), outputs(old, [0, 1, 2, 3, 4, 6]), rtol=1e-4, atol=1e-4)
    model, report = start_model(str(weights), str(spd), NAMES, anchors=3)
    assert isinstance(report, LiftReport)
    assert model.head.anchors.shape == (1, 3, 2)
    for cfg in (str(same), ""):
        assert isinstance(start_model(str(weights), cfg, names)[1], TransferReport)


def test_the_command_writes_a_checkpoint(
    files: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, same, spd = files
    output = tmp_path / "lifted.pt"
    report = main(Options(str(weights), str(spd), str(output)))
    assert difference(open_model(str(output)), open_model(str(weights))) < 1e-5
    assert read_weights(output).names == NAMES
    lines = capsys.readouterr().out.splitlines()
    assert lines == [*map(str, report.rows), f"{output}: {report.summary()}"]
    assert lines[1] == "row 1 (Conv) from row 1, at stride 1: 6 tensors carried over"
    with pytest.raises(InputError, match="strided row"):
        main(Options(str(weights), str(same), str(output)))
    with pytest.raises(InputError, match="could not be written"):
        main(Options(str(weights), str(spd), str(tmp_path / "absent" / "lifted.pt")))
