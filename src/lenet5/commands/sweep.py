"""``lenet5 sweep``: let the machine look for better params, on the validation images alone."""

import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import product
from pathlib import Path

import filelock
import torch
from rich.console import Console

from lenet5.data.datasets import load_without_test
from lenet5.data.fashion_mnist import RAW_DIR
from lenet5.errors import UserError
from lenet5.params import TRAINING_IMAGES, Params, load_params
from lenet5.processors import SLOWED, busy, use_own_share
from lenet5.record.family import Member, Mirror, Runs, Status
from lenet5.record.lineage import Code, lineage_tags, read_code
from lenet5.search.account import family_of, write_files
from lenet5.search.board import Board, Standing, counts, shortlist, table, trial_line, value_of
from lenet5.search.cluster import ClusterEngine
from lenet5.search.confirm import Verdict, kept_verdicts
from lenet5.search.driver import Driver
from lenet5.search.engine import Engine
from lenet5.search.local import LocalEngine
from lenet5.search.origin import differences, origin_of, unchanged_code
from lenet5.search.plan import Plan, first_tried, load_plan, trial_params
from lenet5.search.ray_settings import refuse_share
from lenet5.search.study import Study, open_study, read_study
from lenet5.search.trials import best_first
from lenet5.search.work import train
from lenet5.training.device import pick_device, set_precision
from lenet5.training.engine import choose_engine
from lenet5.workspace import PARAMS_FILE, PIPELINE_FILE, SWEEPS, main_workspace

_NAME = re.compile(r"[\w.-]+")
_EVERY_SECONDS = 1.0  # the table and the record are brought up to date
_OF_THE_MACHINE = ("train.device", "train.engine", "train.precision")
_TOLD = 5  # differences of a sweep from what it was


def run(file: Path, on: str | None, gpus: float) -> int:
    """Go on with the sweep of ``file`` until it has its trials, and record it.

    They are trained here, or on the cluster at ``on``, each with ``gpus`` of a card.
    """
    refuse_share(gpus, on)
    base = load_params(PARAMS_FILE)
    plan, name = load_plan(file, base), file.stem
    on_device = here(base, on, gpus)
    kinds = _kinds(plan, on_device)
    if not gpus or not on:  # nobody here knows the cards of a cluster
        _refuse_unfit(kinds)
    content = file.read_bytes()  # now: it may be another one, or none, when the sweep has ended
    # The engine first: a sweep that has begun may not be changed, and one that cannot be had begins none.
    with claimed(name) as journal, closing(engine_of(plan, kinds, on_device, on, gpus)) as engine:
        study = open_study(journal, name, plan)
        refuse_another(study, name, plan, base)
        found = kept_verdicts(verdicts_of(journal), study.key)
        account = partial(write_files, study, plan, file.name, content)
        _search(study, f"lenet5 sweep run {file}{place(on, gpus)}", name, plan, on_device, engine, found, account)
    _show(study, name, plan)
    return 0


def show(name: str) -> int:
    """Show the best trials of a sweep, which params mattered, and how the other trials ended."""
    study, plan = read_study(begun(name), name)
    _show(study, name, plan)
    for trial in study.trials():
        if trial.kind != "complete":
            print(trial_line(trial, plan) if trial.ended else f"trial {trial.number}: {len(trial.rows)} epochs so far")
    return 0


def here(base: Params, on: str | None, gpus: float) -> Params:
    """``base`` on the device that there is; what is wrong with that, or with the data, is said once."""
    if on:
        device = "cuda" if gpus else "cpu"
    else:
        device = pick_device(base.train.device).type
        load_without_test(RAW_DIR, base.data, torch.device("cpu"))
    return base.model_copy(update={"train": base.train.model_copy(update={"device": device})})


def place(on: str | None, gpus: float) -> str:
    """The options of the command that say where it trains, as they were given."""
    return (f" --on {on}" if on else "") + (f" --gpus-per-trial {gpus}" if gpus else "")


def engine_of(plan: Plan, everybody: Sequence[Params], base: Params, on: str | None, gpus: float) -> Engine:
    """The cluster at ``on``, or as many workers on this machine as the sweep's file says.

    ``everybody`` has all params that differ in how they can be trained. Raises UserError where some cannot be here.
    """
    taken = None if gpus else _engine_taken(everybody)
    if on:
        return ClusterEngine(partial(train, RAW_DIR, taken), on, gpus, base.download)
    workers = min(plan.workers, plan.trials)
    work, prepare = partial(train, RAW_DIR.absolute(), taken), partial(use_own_share, workers)
    return LocalEngine(work, workers, prepare, unchanged_code(PIPELINE_FILE))


def _engine_taken(everybody: Sequence[Params]) -> str | None:
    """How all of them train on a CPU: as they do here. None on a card, and where they do not all train alike."""
    if any(pick_device(one.train.device).type != "cpu" for one in everybody):
        return None
    choices = [choose_engine(one.model, one.train, TRAINING_IMAGES, torch.device("cpu")) for one in everybody]
    if len({choice.name for choice in choices}) > 1:
        return None
    if choices[0].name != "lanes":
        print(f"engine {choices[0].name}: {choices[0].reason}", flush=True)
    return choices[0].name


@contextmanager
def claimed(name: str) -> Iterator[Path]:
    """The journal of sweep ``name``, for this process alone. Raises UserError where another has it."""
    journal = journal_of(name)
    journal.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(journal.with_suffix(".lock"), timeout=0):
            yield journal
    except filelock.Timeout:
        raise UserError(f"sweep {name}: another process is at it; wait for its end, or end it") from None


def mirror_of(base: Params, code: Code, again: str) -> Mirror:
    """What keeps a sweep's MLflow record; ``again`` is the command that sends what is lacking.

    ``code`` is what trains. A tracking server may come to life when somebody has changed code and params already.
    """
    tags = lineage_tags(code) | {"mlflow.source.name": "lenet5 sweep"}
    return Mirror(partial(_runs, base, tags, code), f"`{again}`")


def _kinds(plan: Plan, base: Params) -> list[Params]:
    """A trial of each kind that a machine may or may not be able to train."""
    listed = {name: plan.space[name] for name in _OF_THE_MACHINE if name in plan.space}
    some = (first_tried(plan) | dict(zip(listed, values, strict=True)) for values in product(*listed.values()))
    return [trial_params(plan, base, tried) for tried in some]


def _refuse_unfit(kinds: Sequence[Params]) -> None:
    """Raise UserError for what this machine cannot train: a sweep that has begun with it could never end."""
    for params in kinds:
        device = pick_device(params.train.device)
        set_precision(params.train.precision, device)
        choose_engine(params.model, params.train, TRAINING_IMAGES, device)


def _search(
    study: Study, again: str, name: str, plan: Plan, base: Params, engine: Engine, found: Sequence[Verdict],
    account: Callable[[Path], None],
) -> None:  # fmt: skip
    before = len([trial for trial in study.trials() if trial.ended])
    with (
        tempfile.TemporaryDirectory() as folder,
        mirror_of(base, read_code(), again) as mirror,
        Board(Console(), plan, name, before) as board,
    ):
        of_ended: dict[int, Member] = {}

        def tell(status: Status, files: Path | None = None) -> None:
            in_hand = [trial.number for trial in driver.running.values()] if status == "RUNNING" else []
            mirror.show(family_of(study, name, plan, base, in_hand, status, files, found, of_ended))

        def ended(number: int) -> None:
            board.say(trial_line(study.trials()[number], plan))

        driver = Driver(study, plan, base, engine, ended, board.say)
        if before or driver.resumes:
            board.say(f"sweep {name} goes on: {before} of {plan.trials} trials are done, {driver.resumes} start again")
        try:
            told, crowded = 0.0, ""
            while driver.step():
                if not crowded and isinstance(engine, LocalEngine) and (crowded := busy()):
                    board.say(f"{SLOWED}: {crowded}")
                if time.monotonic() - told > _EVERY_SECONDS:
                    finished = [trial for trial in study.trials() if trial.ended]
                    board.show(Standing(finished, list(driver.running.values())))
                    tell("RUNNING")
                    told = time.monotonic()
            account(Path(folder))
            study.pictures(Path(folder))
        except BaseException:
            engine.close()  # first: what goes on training holds the rest up
            with suppress(OSError):  # a disk that is full may be what ended it
                account(Path(folder))
            tell("KILLED", Path(folder))
            raise
        tell("FINISHED", Path(folder))


def _runs(params: Params, tags: Mapping[str, str], code: Code) -> Runs:
    """The runs of a sweep. The mirror's thread calls it: mlflow imports slowly."""
    from lenet5.record.family_runs import FamilyRuns
    from lenet5.record.store import connect

    return FamilyRuns(connect(params), tags, code)


def refuse_another(study: Study, name: str, plan: Plan, base: Params) -> None:
    """Raise UserError where the sweep of this name began with other params, code or data."""
    now = origin_of(plan, base, PIPELINE_FILE)
    if told := differences(study.begin(now), now):
        more = f" and {len(told) - _TOLD} more" if len(told) > _TOLD else ""
        raise UserError(
            f"sweep {name} began otherwise: {'; '.join(told[:_TOLD])}{more}; put that back, or give this sweep a name "
            "of its own: copy its file to another name"
        )


def _show(study: Study, name: str, plan: Plan) -> None:
    trials = study.trials()
    console = Console(markup=False, highlight=False)
    console.print(f"sweep {name}: {counts(trials)}, of {plan.trials} trials")
    if best_first(trials, plan.objective):
        console.print(table("best trials", *shortlist(trials, plan)))
    if importances := study.importances():
        rows = [[param, value_of(share)] for param, share in importances.items()]
        console.print(table("importance", ["param", "share of what the objective varies"], rows))


def verdicts_of(journal: Path) -> Path:
    """The file of what `lenet5 sweep confirm` found."""
    return journal.with_suffix(".confirmed.json")


def begun(name: str) -> Path:
    """The journal of the sweep ``name``. Raises UserError where none of that name has begun here."""
    journal = journal_of(name)
    if not journal.is_file():
        there = ", ".join(sorted(path.stem for path in journal.parent.glob("*.journal")))
        makes = "`lenet5 sweep run FILE` makes one" if PIPELINE_FILE.is_file() else f"no {PIPELINE_FILE} either"
        raise UserError(f"{name}: no such sweep here; there is {there or f'none yet: {makes}'}")
    return journal


def journal_of(name: str) -> Path:
    """The journal of sweep ``name``. Raises UserError where that is no name."""
    if not _NAME.fullmatch(name):
        raise UserError(f"{name}: not a sweep's name: letters, digits, dot, dash and underscore make one")
    return main_workspace() / SWEEPS / f"{name}.journal"
