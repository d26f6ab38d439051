"""Command lines and YAML files into dataclasses."""

from dataclasses import dataclass
from pathlib import Path

import pytest

import train
from utils.class_hyp import load_class_hyp
from utils.hyp import Hyp, load_hyp
from utils.options import ROOT, InputError, Ranged, find_yaml, from_mapping, option, parse, read_yaml, run_script


@dataclass
class Example(Ranged):
    """Options of no script."""

    imgsz: int = option(640, "size", aliases=("--img", "--img-size"), least=1)
    conf_thres: float = option(0.25, "confidence", aliases=("--conf",), least=0, most=1)
    classes: list[int] | None = option(None, "classes")
    freeze: list[int] = option([0], "rows")
    cache: str | None = option(None, "cache", choices=("ram", "disk"), bare="ram")
    half: bool = option(False, "half")
    amp: bool = option(True, "amp")


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("", {}),
        ("--img 320", {"imgsz": 320}),
        ("--img-size 96 --conf 0.5", {"imgsz": 96, "conf_thres": 0.5}),
        ("--conf-thres 0.1 --half", {"conf_thres": 0.1, "half": True}),
        ("--conf_thres 0.1", {"conf_thres": 0.1}),
        ("--classes 0 2 5 --freeze 3", {"classes": [0, 2, 5], "freeze": [3]}),
        ("--cache", {"cache": "ram"}),
        ("--cache disk --no-amp", {"cache": "disk", "amp": False}),
    ],
)
def test_command_lines(words: str, changes: dict) -> None:
    assert parse(Example, words.split()) == Example(**changes)


def test_a_flag_by_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass
    class Placed(Example):
        data: str = option("", "YAML", positional=True)

    assert parse(Placed, "--img 320 coco --half".split()) == Placed(data="coco", imgsz=320, half=True)
    with pytest.raises(SystemExit):
        parse(Placed, ["--half"])
    assert "required: data" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--img 0", "--img -5", "--conf 1.5", "--conf=-0.1"])
def test_numbers_out_of_range(words: str) -> None:
    with pytest.raises(InputError, match=r"--(imgsz|conf-thres) .*: expected"):
        parse(Example, words.split())


@pytest.mark.parametrize("words", ["--img big", "--cache tape", "--nonsense"])
def test_argparse_ends_with_status_2(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(Example, words.split())
    assert stop.value.code == 2
    assert "error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [(InputError("x.yaml: wrong"), 2, "error: x.yaml: wrong\n"), (KeyboardInterrupt(), 130, "interrupted\n")],
)
def test_a_script_ends_with_one_line(
    error: BaseException, status: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_: Example) -> None:
        raise error

    monkeypatch.setattr("sys.argv", ["script.py"])
    with pytest.raises(SystemExit) as stop:
        run_script(main, Example, "A script.")
    assert stop.value.code == status
    assert capsys.readouterr().err == line


def test_mappings_are_checked() -> None:
    assert from_mapping(Hyp, {"lr0": 1, "mosaic": "1e-1"}, "h.yaml") == Hyp(lr0=1.0, mosaic=0.1)
    for wrong, message in (
        ({"mosiac": 1}, "h.yaml: unknown key 'mosiac'; did you mean mosaic"),
        ({"lr0": "fast"}, "h.yaml: lr0: expected float, found 'fast'"),
        ({"lr0": True}, "h.yaml: lr0: expected float, found True"),
        ({"nominal_batch": 1.5}, "h.yaml: nominal_batch: expected int, found 1.5"),
    ):
        with pytest.raises(InputError) as caught:
            from_mapping(Hyp, wrong, "h.yaml")
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize("content", ["- a list", "key: [unclosed", "!!python/object/apply:os.system ['true']", ""])
def test_yamls_that_are_no_mapping_of_plain_values(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_yamls_are_found_by_name_in_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_yaml("yolov5-spd-n.yaml", "models") == ROOT / "models/yolov5-spd-n.yaml"
    (tmp_path / "yolov5-spd-n.yaml").write_text("nc: 1")
    assert find_yaml("yolov5-spd-n.yaml", "models") == Path("yolov5-spd-n.yaml")  # one's own comes first
    with pytest.raises(InputError, match=r"none\.yaml: no such file; looked for none\.yaml, .*models/none\.yaml"):
        find_yaml("none.yaml", "models")


@pytest.mark.parametrize("path", sorted((ROOT / "data/hyps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads(path: Path) -> None:
    load = load_class_hyp if "crop_padding" in path.read_text() else load_hyp
    assert load(path.name) == load(path)


def test_recipes_of_yolov5_are_read(tmp_path: Path) -> None:
    path = tmp_path / "hyp.yaml"
    path.write_text("lr0: 0.00334\niou_t: 0.2\nanchors: 3.412\n")  # iou_t is read by nothing, anchors may be a fraction
    assert load_hyp(path) == Hyp(lr0=0.00334, anchors=3.412)


@pytest.mark.parametrize(
    "line", ["mosaic: 1.5", "lr0: -1", "momentum: 1.2", "anchor_t: 0", "nominal_batch: 0", "optimizer: Lion"]
)
def test_values_out_of_range(tmp_path: Path, line: str) -> None:
    path = tmp_path / "hyp.yaml"
    path.write_text(line)
    with pytest.raises(InputError, match=f"{line.split(':', maxsplit=1)[0]}: expected"):
        load_hyp(path)


def test_gains_scale_as_in_yolov5() -> None:
    gains = Hyp(box=0.05, cls=0.5, obj=1.0).scaled_gains(classes=20, scales=4, size=320)
    assert gains == pytest.approx({"box": 0.05 * 3 / 4, "cls": 0.5 * 20 / 80 * 3 / 4, "obj": 0.25 * 3 / 4})


def test_options_know_which_were_given() -> None:
    assert parse(train.Options, ["--epochs", "100", "--img", "64"]).given == {"epochs", "imgsz"}
    assert train.Options(epochs=100).given == {"epochs"}
    assert parse(train.Options, []) == train.Options()
