"""Who may import whom: downward only, and three packages through one door each."""

import ast
import sys
from pathlib import Path

import pytest

from utils.options import ROOT

SCRIPTS = {"train", "val", "detect", "hubconf", "data.check", "classify.train", "classify.val", "classify.predict"}
LAYERS = [
    {"utils.upstream", "utils.options", "utils.archive", "utils.pipeline", "utils.window"},
    {
        "models.network",
        "utils.boxes",
        "utils.hyp",
        "utils.class_hyp",
        "utils.run_options",
        "utils.class_metrics",
        "utils.legacy",
        "utils.curves",
        "utils.areas",
        "utils.page",
    },
    {"models.*", "data.*", "utils.loss", "utils.coco", "utils.optim", "utils.anchors"}
    | {"utils.report", "utils.plots", "utils.drawing", "utils.official", "utils.mistakes", "utils.crops"},
    {"utils.engine", "utils.checkpoint", "utils.validation", "utils.runs", "utils.run_log", "utils.autobatch"}
    | {
        "utils.lift",
        "utils.training",
        "utils.run",
        "utils.detection_log",
        "utils.classification",
        "utils.class_log",
        "utils.class_prediction",
        "utils.class_report",
        "utils.assemble",
        "utils.resume",
        "utils.tiles",
        "utils.report_files",
        "utils.hub",
        "utils.results",
        "utils.search",
        "utils.detection",
        "utils.detection_files",
    },
    SCRIPTS,
]
DOORS = {
    "ultralytics": "utils.upstream",
    "tensorboard": "utils.report",
    "matplotlib": "utils.plots",
    "optuna": "utils.search",
}
PACKAGES = ("models", "data", "utils", "classify")
FILES = [*ROOT.glob("*.py"), *(file for folder in PACKAGES for file in (ROOT / folder).glob("*.py"))]


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def layer_of(module: str) -> int:
    package, dot, _ = module.partition(".")
    for entry in (module, f"{package}.*" if dot else module):  # its own, else its package's
        for number, members in enumerate(LAYERS):
            if entry in members:
                return number
    raise AssertionError(f"{module} is in no layer: add it to LAYERS")


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports(file: Path) -> set[str]:
    """The modules that a file imports anywhere."""
    return imports_in(parse(file))


def imports_in(tree: ast.AST) -> set[str]:
    """The modules imported under a node; for `from a import b`, a.b if that is one of ours, else a."""
    ours = {name_of(other) for other in FILES}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: relative import"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in ours else str(node.module) for name in whole}
    return found


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_go_downward(file: Path) -> None:
    own = name_of(file)
    if own in PACKAGES:
        assert not imports(file), "a package's __init__ imports nothing"
        return
    for other in imports(file):
        top = other.split(".")[0]
        if top not in {*PACKAGES, *SCRIPTS}:
            continue
        assert layer_of(other) <= layer_of(own), f"{own} imports {other}, which is above it"
        assert {own.split(".")[0], top} != {"models", "data"}, f"{own} imports {other}"
        assert other not in SCRIPTS, f"{own} imports the script {other}"


def test_what_hubconf_loads_imports_nothing_of_the_project_later() -> None:
    """By then `sys.modules` holds others under these names."""
    files = {name_of(file): file for file in FILES}
    loaded, waiting = set[str](), {"utils.hub"}
    while waiting:
        loaded |= waiting
        waiting = {other for name in waiting for other in imports(files[name])} & files.keys() - loaded
    assert len(loaded) > 20
    for name in sorted(loaded):
        functions = [node for node in ast.walk(parse(files[name])) if isinstance(node, ast.FunctionDef)]
        late = {other for function in functions for other in imports_in(function)}
        assert not late & files.keys(), f"{name} imports {late} inside a function"


@pytest.mark.parametrize(("package", "door"), DOORS.items())
def test_one_door_to_each_package(package: str, door: str) -> None:
    users = {name_of(file) for file in FILES if any(package in other.split(".") for other in imports(file))}
    assert users == {door}


def test_contributing_names_every_module() -> None:
    listed = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## The modules")[2].partition("\n## ")[0]
    for package in ("models", "data", "utils"):
        cells = listed.partition(f"`{package}/`\n\n")[2].partition("\n\n`")[0].splitlines()[2:]
        named = [name.strip("`") for cell in cells if cell for name in cell.split("|")[1].strip().split(", ")]
        assert sorted(named) == sorted(f.stem for f in (ROOT / package).glob("*.py") if f.stem != "__init__"), package


def test_every_import_is_declared() -> None:
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8").lower()
    packages = {"cv2": "opencv-python", "PIL": "pillow", "yaml": "pyyaml", "faster_coco_eval": "faster-coco-eval"}
    used = {other.split(".")[0] for file in FILES for other in imports(file)}
    outside = used - set(sys.stdlib_module_names) - set(PACKAGES)
    missing = {name for name in outside if packages.get(name, name) not in requirements}
    assert not missing
