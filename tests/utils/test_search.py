"""A search tries recipes, keeps what it learnt whatever ends it, and each of its trials is an ordinary run."""

import csv
import math
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("optuna")

import optuna

import train
from tests.helpers import command, error_line, flags
from tests.utils.pictures import has_colour, read
from utils import search
from utils.hyp import Hyp, load_hyp
from utils.options import ROOT, InputError, Interrupted
from utils.plots import plot_search
from utils.run_log import RunLog
from utils.training import NonFiniteLossError

RECIPE = Hyp(lr0=0.02, mosaic=0.3)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def hill(own: Path, _: search.GiveUp) -> float:
    """A fitness that is highest, 1, at lr0 0.005 and mosaic 0.8."""
    hyp = load_hyp(own / "hyp.yaml")
    return 1 - abs(math.log10(hyp.lr0 / 0.005)) - abs(hyp.mosaic - 0.8)


def run(folder: Path, trials: int, objective: search.Train = hill, **changes: Any) -> list[dict[str, str]]:
    search.Search(folder, replace(RECIPE, **changes), seed=0, plots=False).run(trials, objective)
    return rows(folder)


def test_the_space_holds_the_recipe_and_recipes_that_can_be_read(tmp_path: Path) -> None:
    detectors = [file for file in sorted((ROOT / "data/hyps").glob("*.yaml")) if "crop_padding" not in file.read_text()]
    assert len(detectors) >= 5
    for file in detectors:
        recipe = load_hyp(file)
        space = search.search_space(recipe)
        assert {"lr0", "box", "mosaic"} <= space.keys()
        assert all(limits.low <= getattr(recipe, key) <= limits.high for key, limits in space.items())
        for end in ("low", "high"):
            edge = replace(recipe, **{key: getattr(limits, end) for key, limits in space.items()})
            search.write_yaml(tmp_path / "edge.yaml", asdict(edge))
            assert load_hyp(tmp_path / "edge.yaml") == edge


def test_what_is_off_stays_off_and_a_word_is_no_number() -> None:
    space = search.search_space(Hyp(weight_decay=0.0, cls_pw="auto", degrees=90.0, mosaic=0.0))
    assert not {"weight_decay", "cls_pw", "anchors", "optimizer"} & space.keys()
    assert (space["degrees"].low, space["degrees"].high) == (0, 90)
    assert (space["mosaic"].low, space["mosaic"].high) == (0, 1)


def test_the_given_recipe_comes_first_and_better_ones_are_found(tmp_path: Path) -> None:
    table = run(tmp_path, 30)
    assert [row["trial"] for row in table] == [str(number) for number in range(30)]
    assert load_hyp(tmp_path / "trial000/hyp.yaml") == RECIPE
    best = max(table, key=lambda row: float(row["fitness"]))
    assert float(best["fitness"]) > float(table[0]["fitness"]) + 0.3
    text = (tmp_path / "best_hyp.yaml").read_text()
    name = f"trial{int(best['trial']):03}"
    assert text.startswith(f"# {name}, the best of 30 trials: fitness {float(best['fitness']):.5f}\n")
    assert load_hyp(tmp_path / "best_hyp.yaml") == load_hyp(tmp_path / name / "hyp.yaml")


def test_what_matters_is_found_and_drawn(tmp_path: Path) -> None:
    opened = search.Search(tmp_path, RECIPE, seed=0, plots=True)
    assert opened.importances() == {}
    rng = np.random.default_rng(0)
    for values in rng.random((100, len(opened.space))):
        ends = {key: (limits.low, limits.high) for key, limits in opened.space.items()}
        params = {key: low + (high - low) * x for (key, (low, high)), x in zip(ends.items(), values, strict=True)}
        fitness = 1 - abs(params["mosaic"] - 0.8) - abs(params["fliplr"] - 0.2)
        opened.study.add_trial(optuna.trial.create_trial(params=params, distributions=opened.space, value=fitness))
    assert set(list(opened.importances())[:2]) == {"mosaic", "fliplr"}
    opened.run(100, hill)
    assert read(tmp_path / "evolve.png").std() > 5


def test_the_seed_decides(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        search.Search(tmp_path / name, RECIPE, seed=seed, plots=False).run(4, hill)
    assert rows(tmp_path / "one") == rows(tmp_path / "same") != rows(tmp_path / "other")


@pytest.mark.parametrize("end", [Interrupted(signal.SIGTERM), KeyboardInterrupt(), InputError("no such file")])
def test_a_search_that_was_cut_off_starts_its_last_trial_over(tmp_path: Path, end: BaseException) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()

    def ends(own: Path, give_up: search.GiveUp) -> float:
        if own.name == "trial003":
            give_up(0, 0.1)
            raise end
        return hill(own, give_up)

    with pytest.raises(type(end)):
        run(cut, 6, ends)
    assert len(rows(cut)) == 3
    recipe = load_hyp(cut / "trial003/hyp.yaml")
    tried = []

    def goes_on(own: Path, give_up: search.GiveUp) -> float:
        tried.append(own.name)
        assert not give_up(0, 0.1)  # told a second time
        return hill(own, give_up)

    table = run(cut, 6, goes_on)
    assert tried == ["trial003", "trial004", "trial005"]
    assert load_hyp(cut / "trial003/hyp.yaml") == recipe
    assert table[:4] == run(whole, 4)
    assert len({row["lr0"] for row in table}) == 6  # no draw twice


def test_a_study_survives_a_kill_in_a_write_and_asks_for_no_more_than_it_has(tmp_path: Path) -> None:
    before = run(tmp_path, 2)
    with (tmp_path / "study.jsonl").open("a") as file:
        file.write('{"op_code":4,"wor')
    for name in ("trials.csv", "best_hyp.yaml"):
        (tmp_path / name).unlink()
    assert run(tmp_path, 2) == before
    assert (tmp_path / "best_hyp.yaml").is_file()
    assert len(run(tmp_path, 3)) == 3


def test_a_recipe_that_diverges_fails_alone(tmp_path: Path) -> None:
    def diverges(own: Path, give_up: search.GiveUp) -> float:
        if own.name != "trial001":
            raise InputError("epoch 1, batch 2: a, b") from NonFiniteLossError(1, {"box": 1.0, "obj": math.nan})
        return hill(own, give_up)

    table = run(tmp_path, 3, diverges)
    assert [row["state"] for row in table] == ["fail", "complete", "fail"]
    assert [row["error"] for row in table] == ["epoch 1, batch 2: a, b", "", "epoch 1, batch 2: a, b"]
    assert table[0]["fitness"] == "nan"
    (tmp_path / "all").mkdir()
    with pytest.raises(InputError, match=r"trials\.csv: every trial failed"):
        run(tmp_path / "all", 1, diverges)
    assert not (tmp_path / "all/best_hyp.yaml").exists()


def test_a_fitness_that_the_data_do_not_give_ends_the_search(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--fitness"):
        run(tmp_path, 3, lambda *_: math.nan)


def test_trials_below_the_median_are_given_up_after_the_warm_up(tmp_path: Path) -> None:
    epochs = []

    def course(own: Path, give_up: search.GiveUp) -> float:
        top = 0.1 if int(own.name[-2:]) % 2 and int(own.name[-2:]) > 5 else 1.0
        for epoch in range(20):
            if give_up(epoch, top * epoch / 20):
                epochs.append(epoch)
                break
        return top

    states = [row["state"] for row in run(tmp_path, 10, course)]
    assert states == ["complete"] * 7 + ["pruned", "complete", "pruned"]
    assert epochs == [5, 5]
    assert float(rows(tmp_path)[7]["fitness"]) == 0.1 * 5 / 20


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: ["no json", *lines],
        lambda lines: ["[" * 100_000, *lines],
        lambda lines: ["[]", *lines],
        lambda lines: ["{}", *lines],
        lambda lines: ['{"op_code": 99, "worker_id": "a"}', *lines],
        lambda lines: [line.replace("FloatDistribution", "os.system") for line in lines],
        lambda lines: [line.replace('"state":1', '"state":"x"') for line in lines],
    ],
)
def test_a_study_that_cannot_be_read(tmp_path: Path, damage: Callable[[list[str]], list[str]]) -> None:
    run(tmp_path, 2)
    path = tmp_path / "study.jsonl"
    path.write_text("\n".join([*damage(path.read_text().splitlines()), ""]))
    with pytest.raises(InputError, match=r"study\.jsonl: holds no study that can be read"):
        run(tmp_path, 3)


def test_the_recipe_stays_that_of_the_search(tmp_path: Path) -> None:
    run(tmp_path, 1)
    with pytest.raises(InputError, match=r"hyp\.yaml: no longer the recipe"):
        run(tmp_path, 2, ema_tau=100.0)


@pytest.mark.parametrize("trials", [1, 60])
def test_the_picture(tmp_path: Path, trials: int) -> None:
    rng = np.random.default_rng(0)
    keys = list(search.search_space(RECIPE))[:8]
    table: list[dict[str, Any]] = []
    for number in range(trials):
        values = dict(zip(keys, rng.random(len(keys)).tolist(), strict=True))
        state = ("complete", "complete", "pruned", "fail")[number % 4]
        fitness = math.nan if state == "fail" else 1 - abs(values["lr0"] - 0.5)
        table.append({"trial": number, "state": state, "fitness": fitness, **values})
    importances = dict(zip(keys, rng.dirichlet([0.3] * len(keys)).tolist(), strict=True)) if trials > 1 else {}
    plot_search(table, keys, importances, tmp_path / "evolve.png")
    picture = read(tmp_path / "evolve.png")
    assert picture.shape[1] == 1800
    assert has_colour(picture, (0x00, 0x5E, 0xD5), 3)  # the best trial's star, in BGR


@pytest.fixture
def options(squares: Path, tiny_cfg: str, tmp_path: Path) -> dict[str, Any]:
    """A search whose trials take a second."""
    settings = {"cfg": tiny_cfg, "data": str(squares), "hyp": "glyphs.yaml", "imgsz": 64, "batch_size": 4}
    return settings | {"workers": 0, "epochs": 1, "project": str(tmp_path), "name": "search", "noplots": True}


def test_a_search_from_the_command_line_and_on(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "search"
    assert command(train, monkeypatch, *flags(options | {"evolve": 2, "optimizer": "SGD"})) == 0
    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "batch_drawer", lambda *_: lambda *_: signal.raise_signal(signal.SIGTERM))
        assert command(train, patch, "--evolve", 3, "--resume", folder) == 143
    assert f"train.py --evolve 3 --resume {folder} goes on with the search" in capsys.readouterr().out
    assert len(rows(folder)) == 2
    train.run(evolve=3, resume=str(folder))
    table = rows(folder)
    assert [row["state"] for row in table] == ["complete"] * 3
    assert "best of 3 trials: trial00" in capsys.readouterr().out
    assert sorted(path.name for path in folder.glob("trial*")) == ["trial000", "trial001", "trial002", "trials.csv"]
    best = max(table, key=lambda row: float(row["fitness"]))["trial"]
    assert load_hyp(folder / "best_hyp.yaml").optimizer == "SGD"
    train.run(**options | {"name": "alone", "hyp": str(folder / "best_hyp.yaml")})
    alone, found = tmp_path / "alone/results.csv", folder / f"trial00{best}/results.csv"
    assert alone.read_text() == found.read_text()


def test_what_a_search_refuses(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(**changes: Any) -> str:
        assert command(train, monkeypatch, *flags({"evolve": 2} | changes)) == 2
        return error_line(capsys)

    assert "no such file" in refused(**options | {"data": "none.yaml"})
    assert list(tmp_path.iterdir()) == []  # nothing is left of it
    assert "study.jsonl" in refused(resume=tmp_path)
    folder = search._begin(train.Options(**options), RECIPE)
    search.Search(folder, RECIPE, seed=0, plots=False).run(1, hill)
    assert "holds a search already" in refused(**options, exist_ok=True)
    assert "--epochs 2: the run in" in refused(resume=folder, epochs=2)
    (folder / "opt.yaml").write_text("evolve: many\n")
    assert "opt.yaml: evolve: expected int" in refused(resume=folder)


def test_without_optuna_a_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "utils.search")
    assert command(train, monkeypatch, "--evolve", "2") == 2
    assert 'pip install "optuna' in error_line(capsys)
