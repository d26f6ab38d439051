"""Lifting as users meet it: a training that starts from a strided checkpoint, and the command."""

from pathlib import Path

import pytest
import torch
import yaml

from tests.utils.lifting import BACKBONE, NAMES, SPD_BACKBONE, difference, outputs, small, strided
from utils.checkpoint import TransferReport, read_weights, save_checkpoint
from utils.lift import LiftReport, Options, main
from utils.options import InputError
from utils.runs import open_model, start_model


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
