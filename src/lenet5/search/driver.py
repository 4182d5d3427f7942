"""The one process that asks the search what to try, has it trained, and tells the search what came of it."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from lenet5.errors import UserError
from lenet5.params import Params
from lenet5.search.engine import Ended, Engine, Event, Failed, Gained, Job, Lost, Row
from lenet5.search.plan import Plan, Prune, trial_params
from lenet5.search.runs import LOST_AT_MOST
from lenet5.search.study import Study
from lenet5.search.trials import Kind, chosen_row, is_over, is_stuck

_WAIT = 0.5


@dataclass
class Running:
    """A trial that an engine is at."""

    number: int
    params: Params
    rows: list[Row] = field(default_factory=list)


class Driver:
    """Goes on with a search until it has its trials.

    ``ended`` is called with the number of each trial that has come to an end, ``say`` with what a person should know.
    """

    def __init__(
        self, study: Study, plan: Plan, base: Params, engine: Engine,
        ended: Callable[[int], None], say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._study, self._plan, self._base, self._engine = study, plan, base, engine
        self._ended, self._say = ended, say
        self._waiting = deque(study.unfinished())
        self.resumes = len(self._waiting)
        self._to_ask = max(0, plan.trials - len(study.trials()))
        self.running: dict[str, Running] = {}

    def step(self) -> bool:
        """Start what can start and take in what has happened, within a second; whether there is more to come.

        Raises UserError where a worker cannot work, which is no trial's doing: each trial is as it was.
        """
        while (self._waiting or self._to_ask) and self._engine.free() > 0:
            self._start()
        for event in self._engine.events(_WAIT):
            if trial := self.running.get(event.key):
                self._take(trial, event)
        return bool(self.running or self._waiting or self._to_ask)

    def _start(self) -> None:
        if self._waiting:
            number = self._waiting.popleft()
        else:
            number, self._to_ask = self._study.ask(), self._to_ask - 1
        params = trial_params(self._plan, self._base, self._study.tried(number))
        self.running[str(number)] = Running(number, params)
        self._engine.start(Job(str(number), params.model_dump(by_alias=True)))

    def _take(self, trial: Running, event: Event) -> None:
        match event:
            case Gained():
                self._judge(trial, event.row)
            case Ended():
                value = float(chosen_row(trial.rows, trial.params.train)[self._plan.objective])
                self._end(trial, "complete", "", value)
            case Failed(hopeless=True):
                self._end(trial, "diverged", event.reason)
            case Failed():
                raise UserError(f"trial {trial.number}: {event.reason}")
            case Lost():
                self._lose(trial, event)

    def _judge(self, trial: Running, row: Row) -> None:
        trial.rows.append(row)
        epoch, epochs = int(row["epoch"]), trial.params.train.epochs
        worse = self._study.add_row(trial.number, row, epochs)
        if is_over(trial.rows, trial.params.train):
            return
        early = isinstance(self._plan.prune, Prune) and self._plan.prune.after * epochs <= epoch
        if early and is_stuck(trial.rows):
            self._stop(trial, "stuck", f"ended at epoch {epoch} of {epochs}: stuck at chance, one class in ten")
        elif worse:
            self._stop(trial, "pruned", f"pruned at epoch {epoch} of {epochs}: not in the better half so far")

    def _stop(self, trial: Running, kind: Kind, note: str) -> None:
        self._engine.stop(str(trial.number))
        self._end(trial, kind, note)

    def _lose(self, trial: Running, event: Lost) -> None:
        times = 0 if event.with_machine else self._study.lose(trial.number, event.reason)
        if times >= LOST_AT_MOST:
            self._end(trial, "lost", f"{event.reason}, {times} times")
            return
        del self.running[str(trial.number)]
        self._waiting.appendleft(trial.number)
        self._say(f"trial {trial.number}: {event.reason}; it starts again")

    def _end(self, trial: Running, kind: Kind, note: str, value: float | None = None) -> None:
        del self.running[str(trial.number)]
        self._study.end(trial.number, kind, note, len(trial.rows), value)
        self._ended(trial.number)
