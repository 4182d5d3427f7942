import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lenet5.errors import UserError
from lenet5.search.engine import Ended, Event, Failed, Gained, HopelessError, Job, Lost, Row
from lenet5.search.local import LocalEngine

Engines = Callable[[int], LocalEngine]


def act(folder: Path, params: Mapping[str, Any]) -> Iterator[Row]:
    """A work that counts its rows, and does what it is told after some of them."""
    for number in range(1, params["rows"] + 1):
        yield {"epoch": number, "pid": os.getpid()}
        if number == params.get("at"):
            deeds = {"diverge": diverge, "mistake": mistake, "crash": crash, "leave": leave, "surprise": surprise}
            deeds[params["then"]]()
        if params.get("slow"):
            (folder / f"{os.getpid()}").write_text(str(number))
            time.sleep(0.05)


def diverge() -> None:
    raise HopelessError("the loss became nan")


def mistake() -> None:
    raise UserError("no data here")


def crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    raise SystemExit("the card is full")


def surprise() -> None:
    raise RuntimeError("CUDA error: an illegal memory access")


def nothing() -> None:
    pass


def broken() -> None:
    raise OSError("no such thing")


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    made: list[LocalEngine] = []

    def make(workers: int) -> LocalEngine:
        made.append(LocalEngine(partial(act, tmp_path), workers, nothing, nothing))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def until(engine: LocalEngine, last: Callable[[Event], bool]) -> list[Event]:
    events: list[Event] = []
    deadline = time.monotonic() + 60
    while not events or not last(events[-1]):
        assert time.monotonic() < deadline, events
        for event in engine.events(0.2):
            events.append(event)
            if last(event):
                break
    return events


def over(event: Event) -> bool:
    return not isinstance(event, Gained)


def test_rows_come_in_their_order_and_a_worker_takes_the_next_job(engines: Engines) -> None:
    engine = engines(1)
    pids = set()
    for key in ("one", "two"):
        assert engine.free() == 1
        engine.start(Job(key, {"rows": 3}))
        assert engine.free() == 0
        *rows, end = until(engine, over)
        assert end == Ended(key)
        assert [(event.key, event.row["epoch"]) for event in rows if isinstance(event, Gained)] == [
            (key, 1), (key, 2), (key, 3)
        ]  # fmt: skip
        pids |= {event.row["pid"] for event in rows if isinstance(event, Gained)}
    assert len(pids) == 1


def test_jobs_run_beside_each_other(engines: Engines) -> None:
    engine = engines(2)
    engine.start(Job("one", {"rows": 100, "slow": True}))
    engine.start(Job("two", {"rows": 1}))
    assert engine.free() == 0
    assert until(engine, over)[-1] == Ended("two")
    assert engine.free() == 1


def test_a_job_nobody_wants_ends_after_its_row_without_the_end_of_its_process(engines: Engines) -> None:
    engine = engines(1)
    engine.start(Job("one", {"rows": 10_000, "slow": True}))
    (first,) = until(engine, lambda event: isinstance(event, Gained))
    engine.stop("one")
    deadline = time.monotonic() + 30
    while not engine.free():
        assert list(engine.events(0.1)) == []
        assert time.monotonic() < deadline
    engine.start(Job("two", {"rows": 1}))
    row, _ = until(engine, over)
    assert isinstance(row, Gained)
    assert isinstance(first, Gained)
    assert row.row["pid"] == first.row["pid"]


@pytest.mark.parametrize(
    ("then", "expected"),
    [
        ("diverge", Failed("one", "the loss became nan", hopeless=True)),
        ("mistake", Failed("one", "no data here", hopeless=False)),
        ("crash", Lost("one", "its process ended (killed by SIGKILL)")),
        ("leave", Lost("one", "its process ended (exit status 1)")),
        ("surprise", Lost("one", "RuntimeError: CUDA error: an illegal memory access")),
    ],
)
def test_how_a_job_came_to_no_end_is_told_and_the_next_one_runs(engines: Engines, then: str, expected: Event) -> None:
    engine = engines(1)
    engine.start(Job("one", {"rows": 3, "at": 2, "then": then}))
    assert until(engine, over)[-1] == expected
    engine.start(Job("one", {"rows": 1}))
    assert until(engine, over)[-1] == Ended("one")


def test_a_process_whose_work_raised_what_nobody_foresaw_ends_and_another_takes_the_next_job(engines: Engines) -> None:
    engine, pids = engines(1), []
    for key in ("one", "two"):
        assert engine.free() == 1
        engine.start(Job(key, {"rows": 1, "at": 1, "then": "surprise"}))
        row, lost = until(engine, over)
        assert isinstance(row, Gained)
        assert isinstance(lost, Lost)
        pids.append(row.row["pid"])
        with pytest.raises(ProcessLookupError):
            os.kill(pids[-1], 0)
    assert pids[0] != pids[1]


def test_a_worker_that_cannot_be_prepared_loses_its_job(tmp_path: Path) -> None:
    engine = LocalEngine(partial(act, tmp_path), 1, broken, nothing)
    engine.start(Job("one", {"rows": 1}))
    assert isinstance(until(engine, over)[-1], Lost)
    engine.close()


def test_no_worker_starts_with_code_that_has_changed(tmp_path: Path) -> None:
    def check() -> None:
        if (tmp_path / "changed").exists():
            raise UserError("changed")

    engine = LocalEngine(partial(act, tmp_path), 1, nothing, check)
    engine.start(Job("one", {"rows": 1}))
    until(engine, over)
    (tmp_path / "changed").touch()
    engine.start(Job("two", {"rows": 2, "at": 1, "then": "surprise"}))  # by the worker that is there
    assert isinstance(until(engine, over)[-1], Lost)
    with pytest.raises(UserError, match="changed"):
        engine.start(Job("two", {"rows": 2}))
    engine.close()


def test_closing_ends_what_runs_at_once(engines: Engines, tmp_path: Path) -> None:
    engine = engines(1)
    engine.start(Job("one", {"rows": 10_000, "slow": True}))
    until(engine, lambda event: isinstance(event, Gained) and event.row["epoch"] == 2)
    started = time.monotonic()
    engine.close()
    assert time.monotonic() - started < 2
    (written,) = tmp_path.iterdir()
    before = written.read_text()
    time.sleep(0.3)
    assert written.read_text() == before
