"""A search for a better recipe: Optuna proposes recipes, each is tried by a training of its own in the search's folder.

What was tried is kept beside the trials as lines of JSON, so a search goes on where it stopped. The only module that
uses Optuna, which nothing else needs.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from utils.hyp import RANGES, Hyp
from utils.options import InputError, from_mapping, read_yaml
from utils.plots import plot_search
from utils.report import write_csv, write_yaml
from utils.resume import CHANGEABLE, changed_options, newest
from utils.runs import make_run_folder, seed_everything
from utils.training import NonFiniteLossError
from utils.validation import Report

try:
    import optuna
    from optuna.distributions import FloatDistribution
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
    from optuna.trial import FrozenTrial, Trial, TrialState
except ModuleNotFoundError as error:
    raise InputError('--evolve: needs the package optuna; get it with: pip install "optuna>=5.0"') from error

LOGGER = logging.getLogger("yolov5-spd")
JOURNAL = "study.jsonl"
STUDY = "recipe"
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
# Kept the same when a search goes on, as its trials are compared: what they are trained on and for how long
CHANGEABLE_IN_SEARCH = CHANGEABLE - {"data", "epochs", "patience"} | {"evolve"}
# Searched by their logarithm, from the recipe's value divided by a factor to the value times it; what is 0 stays 0
FACTORS = {
    **dict.fromkeys(("lr0", "lrf", "weight_decay", "warmup_bias_lr"), 10.0),
    **dict.fromkeys(("box", "cls", "obj"), 4.0),
    **dict.fromkeys(("cls_pw", "obj_pw", "anchor_t"), 2.0),
}
# Searched evenly between limits, which give way to a recipe beyond them
LIMITS = {
    "momentum": (0.6, 0.98),
    "warmup_epochs": (0.0, 5.0),
    "warmup_momentum": (0.0, 0.95),
    "fl_gamma": (0.0, 2.0),
    "hsv_h": (0.0, 0.1),
    "degrees": (0.0, 45.0),
    "shear": (0.0, 10.0),
    "perspective": (0.0, 0.001),
    **dict.fromkeys(("hsv_s", "hsv_v", "translate", "scale"), (0.0, 0.9)),
    **dict.fromkeys(("flipud", "fliplr", "mosaic", "mixup", "copy_paste"), (0.0, 1.0)),
}
DIGITS = 5  # of a proposed value: enough to train by, and to read
PRUNER = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=round(LIMITS["warmup_epochs"][1]))
IMPORTANCE = PedAnovaImportanceEvaluator(target_quantile=0.25)
LEAST_FOR_IMPORTANCE = 80  # trials: with fewer, chance puts keys first that do not matter

GiveUp = Callable[[int, float], bool]  # asked after an epoch with its fitness, but not after the last
Train = Callable[[Path, GiveUp], float]  # trains by the hyp.yaml in a folder, into that folder; returns the fitness


class Run(Protocol):
    """What a search needs of a training that is built and checked, with nothing written before it runs."""

    hyp: Hyp
    fitness: dict[str, float]

    def run(self, give_up: GiveUp) -> Report:
        """Train, or stop where told to; returns the best epoch's validation."""


class SearchOptions(Protocol):
    """What a search reads of a training's options."""

    given: frozenset[str]
    evolve: int | None
    resume: str | None
    project: str
    name: str
    exist_ok: bool
    noplots: bool
    seed: int


O = TypeVar("O", bound=SearchOptions)  # noqa: E741


def evolve(options: O, make: Callable[[O], Run]) -> None:
    """Start a search or go on with one, up to `--evolve` trials, and say which recipe was best.

    A trial is the run that its own hyp.yaml would give by itself, without pictures.

    Raises:
        InputError: the options are no training's, or every trial failed.
    """
    trials = options.evolve
    assert trials is not None
    if options.resume:
        options = _resumed(options, options.resume)
    alone = {"evolve": None, "resume": None, "exist_ok": True, "noplots": True}
    plain: O = replace(options, **alone)  # type: ignore[type-var]
    recipe = make(plain).hyp  # what is wrong with the options is told before anything is written
    folder = Path(options.project) / options.name if options.resume else _begin(options, recipe)

    def train(own: Path, give_up: GiveUp) -> float:
        seed_everything(options.seed)
        place = {"hyp": str(own / "hyp.yaml"), "project": str(folder), "name": own.name}
        run = make(replace(plain, **place))  # type: ignore[type-var]
        return run.run(give_up).fitness(run.fitness)

    search = Search(folder, recipe, seed=options.seed, plots=not options.noplots)
    search.run(trials, train)


def _resumed(options: O, resume: str) -> O:
    """The options of the search to go on with, its own recipe and folder among them, with those that may change."""
    path = newest(JOURNAL, _project(options)) if resume == "newest" else Path(resume).resolve() / JOURNAL
    if not path.is_file():
        raise InputError(f"--resume {resume}: expected the folder of a search, with its {JOURNAL}")
    folder = path.parent
    settings = folder / "opt.yaml"
    saved = from_mapping(type(options), read_yaml(settings), str(settings))
    changed = changed_options(saved, options, options.given, CHANGEABLE_IN_SEARCH, settings)
    place = {"hyp": str(folder / "hyp.yaml"), "project": str(folder.parent), "name": folder.name}
    return replace(changed, **place)  # type: ignore[type-var]


def _project(options: SearchOptions) -> str:
    return options.project if "project" in options.given else "runs/evolve"


def _begin(options: SearchOptions, recipe: Hyp) -> Path:
    """Make a new search's folder, with the options and the recipe to start from."""
    folder = make_run_folder(_project(options), options.name, exist_ok=options.exist_ok)
    if (folder / JOURNAL).is_file():
        raise InputError(f"--exist-ok: {folder} holds a search already; --resume {folder} goes on with it")
    write_yaml(folder / "opt.yaml", asdict(options))  # type: ignore[call-overload]
    write_yaml(folder / "hyp.yaml", asdict(recipe))
    return folder


def search_space(recipe: Hyp) -> dict[str, FloatDistribution]:
    """The keys that are searched about a recipe, with their ranges."""
    space = {}
    for key, factor in FACTORS.items():
        value = getattr(recipe, key)
        if isinstance(value, float) and value > 0:  # cls_pw may be a word
            least, most = RANGES.get(key, (0.0, math.inf))
            space[key] = FloatDistribution(max(value / factor, least), min(value * factor, most), log=True)
    for key, (low, high) in LIMITS.items():
        value = getattr(recipe, key)
        space[key] = FloatDistribution(min(low, value), max(high, value))
    return space


class Search:
    """A search in its folder: `study.jsonl`, a folder for each trial, and after each trial what came of all so far."""

    def __init__(self, folder: Path, recipe: Hyp, *, seed: int, plots: bool) -> None:
        """Open the folder's study, or begin it with the recipe as its first trial.

        Raises:
            InputError: the folder's study cannot be read.
        """
        self.folder = folder
        self.recipe = recipe
        self.plots = plots
        self.space = search_space(recipe)
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # the search speaks for itself
        self.storage = _open_journal(folder / JOURNAL)
        self.study = optuna.create_study(
            storage=self.storage, study_name=STUDY, direction="maximize", pruner=PRUNER, load_if_exists=True
        )
        begun_with = self.study.user_attrs.get("recipe")
        if begun_with is None:
            self.study.set_user_attr("recipe", asdict(recipe))
        elif from_mapping(Hyp, begun_with, str(folder / JOURNAL)) != recipe:
            raise InputError(f"{folder / 'hyp.yaml'}: no longer the recipe that the search began with")
        count = len(self.study.trials)
        if not count:
            self.study.enqueue_trial({key: getattr(recipe, key) for key in self.space})
        self.study.sampler = optuna.samplers.TPESampler(seed=(seed + count) % 2**32)  # not the same draws again

    def run(self, trials: int, train: Train) -> None:
        """Try recipes until there are as many trials, of those that an earlier call made too.

        A signal, or a mistake that no other recipe would mend, ends it at once; what is finished stays.

        Raises:
            InputError: training was not possible, or every trial failed.
        """
        LOGGER.info(f"{trials} trials of a recipe of {len(self.space)} keys in {self.folder}")
        self._write()  # again, as a kill may have come between a trial's end and this
        try:
            while len(self._finished()) < trials:
                self._try(self._next(), train)
                self._write()
        except KeyboardInterrupt:
            LOGGER.info(f"train.py --evolve {trials} --resume {self.folder} goes on with the search")
            raise
        best = self._best()
        if best is None:
            raise InputError(f"{self.folder / 'trials.csv'}: every trial failed; a lower lr0 in the recipe may help")
        LOGGER.info(
            f"best of {len(self._finished())} trials: {_name(best)}, fitness {best.value:.5f}; its recipe is"
            f" {self.folder / 'best_hyp.yaml'}"
        )

    def _finished(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=FINISHED)

    def _best(self) -> FrozenTrial | None:
        """The trial of the highest fitness among those trained to their end."""
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return max(complete, key=lambda trial: trial.value or 0.0, default=None)

    def _next(self) -> Trial:
        """The trial that was cut off, which starts over, or else a new one."""
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if not running:
            return self.study.ask()
        study = self.storage.get_study_id_from_name(STUDY)
        return Trial(self.study, self.storage.get_trial_id_from_study_id_trial_number(study, running[0].number))

    def _try(self, trial: Trial, train: Train) -> None:
        """Train by the trial's recipe and note what came of it."""
        known = self.study.trials[trial.number].intermediate_values  # judged before the trial was cut off
        pruned = False

        def give_up(epoch: int, fitness: float) -> bool:
            nonlocal pruned
            if epoch not in known:
                trial.report(fitness, epoch)
                pruned = trial.should_prune()
            return pruned

        try:
            fitness = train(self._propose(trial), give_up)
        except InputError as error:
            if not isinstance(error.__cause__, NonFiniteLossError):
                raise
            LOGGER.warning(f"{_name(trial)} failed: {error}")
            trial.set_user_attr("error", str(error))
            self.study.tell(trial, state=TrialState.FAIL)
            return
        if math.isnan(fitness):
            raise InputError("--fitness: the validation images give no such figure to compare recipes by")
        if pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, fitness)
        LOGGER.info(f"{_name(trial)}: {'given up early' if pruned else f'fitness {fitness:.5f}'}")

    def _propose(self, trial: Trial) -> Path:
        """Write the trial's recipe into its folder."""
        for key, values in self.space.items():
            trial.suggest_float(key, values.low, values.high, log=values.log)
        own = self.folder / _name(trial)
        own.mkdir(exist_ok=True)
        write_yaml(own / "hyp.yaml", asdict(self._recipe(trial)))
        LOGGER.info(f"{own.name} begins")
        return own

    def _recipe(self, trial: Trial | FrozenTrial) -> Hyp:
        return replace(self.recipe, **self._values(trial))

    def _values(self, trial: Trial | FrozenTrial) -> dict[str, Any]:
        """The trial's values of the searched keys, short but for those of the recipe itself."""
        found = {key: trial.params[key] for key in self.space}
        return {
            key: value if value == getattr(self.recipe, key) else float(f"{value:.{DIGITS}g}")
            for key, value in found.items()
        }

    def _write(self) -> None:
        """Write the best recipe, the table of the finished trials, and their picture."""
        best = self._best()
        if best is not None:
            told = f"{_name(best)}, the best of {len(self._finished())} trials: fitness {best.value:.5f}"
            write_yaml(self.folder / "best_hyp.yaml", asdict(self._recipe(best)), comment=told)
        rows = [self._row(trial) for trial in self._finished()]
        if not rows:
            return
        write_csv(self.folder / "trials.csv", rows)
        if self.plots:
            plot_search(rows, list(self.space), self.importances(), self.folder / "evolve.png")

    def _row(self, trial: FrozenTrial) -> dict[str, Any]:
        row = {"trial": trial.number, "state": trial.state.name.lower()}
        row["fitness"] = math.nan if trial.value is None else trial.value
        return row | self._values(trial) | {"error": trial.user_attrs.get("error", "")}

    def importances(self) -> dict[str, float]:
        """Each key's share in what sets the best quarter of the trials apart; empty while they are too few."""
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(complete) < LEAST_FOR_IMPORTANCE:
            return {}
        return get_param_importances(self.study, evaluator=IMPORTANCE)


def _name(trial: Trial | FrozenTrial) -> str:
    return f"trial{trial.number:03}"


def _open_journal(path: Path) -> JournalStorage:
    """Open a study's file, less a last line that a kill has left unfinished; nothing in it is ever executed."""
    if path.is_file():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
    try:
        return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path))))
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, RecursionError) as error:
        raise InputError(f"{path}: holds no study that can be read ({type(error).__name__}: {error})") from error
