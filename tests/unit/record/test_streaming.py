import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from lenet5.record import streaming
from lenet5.record.result import Point
from lenet5.record.streaming import Stream

SOON = 0.01


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(streaming, "_EVERY_SECONDS", SOON)
    monkeypatch.setattr(streaming, "_AFTER_FAILURE_SECONDS", SOON)
    yield
    for thread in threading.enumerate():
        if thread.name == "tracking":
            thread.join(5)
            assert not thread.is_alive()


def points(step: int, count: int = 3) -> list[Point]:
    return [Point(f"curve/{number}", float(number), step, 0) for number in range(count)]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


class FakeRun:
    """Keeps what it is told; fails ``failures`` times before each kind of call works."""

    page = "http://127.0.0.1:5000/#/a-run"

    def __init__(self, failures: int = 0) -> None:
        self.points: list[Point] = []
        self.ended: list[tuple[object, ...]] = []
        self.calls: list[int] = []
        self.failures = failures

    def wait_for_epochs(self, epochs: int) -> None:
        wait_for(lambda: len(self.points) == 3 * epochs)

    def log_points(self, points: Sequence[Point]) -> None:
        self._maybe_fail()
        self.calls.append(len(points))
        self.points.extend(points)

    def finish(self, training_digest: str) -> str:
        self._maybe_fail()
        self.ended.append(("finished", training_digest))
        return self.page

    def fail(self, reason: str, killed: bool) -> None:
        self._maybe_fail()
        self.ended.append(("failed", reason, killed))

    def _maybe_fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no route\n  to MLflow")


class BlockedRun(FakeRun):
    """Its store does not answer until ``answer`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.answer = threading.Event(), threading.Event()

    def log_points(self, points: Sequence[Point]) -> None:
        self.asked.set()
        assert self.answer.wait(10)
        super().log_points(points)


def test_every_point_arrives_once_and_in_order_and_then_the_run_ends(capsys: pytest.CaptureFixture[str]) -> None:
    run = FakeRun()
    with Stream(lambda: run) as stream:
        for epoch in range(50):
            stream.send(points(epoch))
            if epoch % 10 == 0:
                run.wait_for_epochs(epoch + 1)
        assert stream.finish("a digest") == FakeRun.page
    assert run.points == [point for epoch in range(50) for point in points(epoch)]
    assert run.ended == [("finished", "a digest")]
    assert capsys.readouterr() == ("", "")


def test_points_arrive_while_training_still_runs() -> None:
    run = FakeRun()
    with Stream(lambda: run) as stream:
        stream.send(points(1))
        wait_for(lambda: run.points == points(1))
        assert run.ended == []
        stream.finish("a digest")


def test_many_points_go_in_calls_that_a_store_takes() -> None:
    run = FakeRun()
    with Stream(lambda: run) as stream:
        stream.send(points(1, 2500))
        stream.finish("a digest")
    assert run.points == points(1, 2500)
    assert max(run.calls) <= 1000


def test_a_store_that_is_away_for_a_while_loses_nothing_and_is_told_about_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = FakeRun()
    with Stream(lambda: run) as stream:
        for epoch in range(6):
            if epoch == 2:
                run.failures = 5
            stream.send(points(epoch))
            if epoch in (1, 5):
                run.wait_for_epochs(epoch + 1)
        stream.finish("a digest")
    assert run.points == [point for epoch in range(6) for point in points(epoch)]
    assert run.ended == [("finished", "a digest")]
    behind, back = capsys.readouterr().err.splitlines()
    assert behind == "MLflow is behind, training goes on and nothing is lost (no route to MLflow)"
    assert back == "MLflow is back and has every point"


def test_it_says_back_only_when_every_point_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    run, said = FakeRun(failures=1), []
    monkeypatch.setattr(streaming, "say", lambda line: said.append((line.split(",")[0], len(run.points))))
    with Stream(lambda: run) as stream:
        stream.send(points(1, 2500))
        wait_for(lambda: len(run.points) == 2500)
        stream.finish("a digest")
    assert said == [("MLflow is behind", 0), ("MLflow is back and has every point", 2500)]


def test_a_second_outage_is_told_about_again(capsys: pytest.CaptureFixture[str]) -> None:
    run = FakeRun()
    with Stream(lambda: run) as stream:
        for epoch in (1, 2):
            run.failures = 2
            stream.send(points(epoch))
            run.wait_for_epochs(epoch)
            wait_for(lambda: not stream._behind)
        stream.finish("a digest")
    said = [line.split(",")[0].split(" and")[0] for line in capsys.readouterr().err.splitlines()]
    assert said == ["MLflow is behind", "MLflow is back"] * 2


def test_a_run_that_cannot_be_opened_at_first_is_opened_later(capsys: pytest.CaptureFixture[str]) -> None:
    run, attempts = FakeRun(), []

    def open_run() -> FakeRun:
        attempts.append(1)
        if len(attempts) < 4:
            raise OSError("no server")
        return run

    with Stream(open_run) as stream:
        stream.send(points(1))
        wait_for(lambda: run.points)
        stream.send(points(2))
        stream.finish("a digest")
    assert len(attempts) == 4
    assert run.points == points(1) + points(2)
    assert "behind" in capsys.readouterr().err


def test_sending_never_waits_for_the_store() -> None:
    run = BlockedRun()
    with Stream(lambda: run) as stream:
        stream.send(points(1))
        assert run.asked.wait(5)
        since = time.monotonic()
        for epoch in range(2, 100):
            stream.send(points(epoch))
        assert time.monotonic() - since < 0.5
        assert run.points == []
        run.answer.set()
        stream.finish("a digest")
    assert [point.step for point in run.points[::3]] == list(range(1, 100))


def test_starting_never_waits_for_the_store() -> None:
    opened = threading.Event()

    def open_run() -> FakeRun:
        opened.wait(10)
        return FakeRun()

    since = time.monotonic()
    with Stream(open_run) as stream:
        stream.send(points(1))
        assert time.monotonic() - since < 0.5
        opened.set()
        stream.finish("a digest")


def test_finish_gives_up_on_a_store_that_does_not_answer_and_says_what_brings_the_rest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = BlockedRun()
    with Stream(lambda: run, patience=0.1) as stream:
        stream.send(points(1))
        since = time.monotonic()
        assert stream.finish("a digest") is None
        assert 0.1 <= time.monotonic() - since < 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "`dvc repro` sends the rest" in line
    run.answer.set()


def test_finish_gives_up_at_once_on_a_store_that_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    run = FakeRun(failures=10**9)
    since = time.monotonic()
    with Stream(lambda: run) as stream:
        stream.send(points(1))
        stream.finish("a digest")
    assert time.monotonic() - since < 2
    behind, rest = capsys.readouterr().err.splitlines()
    assert "behind" in behind
    assert "`dvc repro` sends the rest" in rest


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (ValueError("the loss became nan"), ("failed", "the loss became nan", False)),
        (RuntimeError(), ("failed", "RuntimeError", False)),
        (KeyboardInterrupt(), ("failed", "KeyboardInterrupt", True)),
        (SystemExit("killed"), ("failed", "killed", True)),
    ],
    ids=repr,
)
def test_a_training_that_does_not_end_is_closed_with_its_reason_after_its_points(
    error: BaseException, end: tuple[object, ...]
) -> None:
    run = FakeRun()

    def train() -> None:
        with Stream(lambda: run) as stream:
            stream.send(points(1))
            raise error

    with pytest.raises(type(error)) as raised:
        train()
    assert raised.value is error
    assert run.points == points(1)
    assert run.ended == [end]


def failing(stream: Stream) -> None:
    with stream:
        stream.send(points(1))
        raise ValueError("the loss became nan")


def test_a_training_that_fails_before_the_store_is_open_waits_until_its_run_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = FakeRun()

    def open_run() -> FakeRun:
        time.sleep(0.4)  # the import of mlflow alone takes longer
        return run

    with pytest.raises(ValueError, match="the loss became nan"):
        failing(Stream(open_run, patience=0.1))
    assert run.ended == [("failed", "the loss became nan", False)]
    assert capsys.readouterr().err == ""


def test_what_a_store_did_not_hear_of_a_failure_is_said_as_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_FAILED_PATIENCE", 0.1)
    silent = BlockedRun()
    with pytest.raises(ValueError, match="nan"):
        failing(Stream(lambda: silent))
    silent.answer.set()
    with pytest.raises(ValueError, match="nan"):
        failing(Stream(lambda: FakeRun(failures=10**9)))
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "MLflow has not heard that this training failed; the next one closes its run there"
    assert said[1] == f"{said[0]} (no route to MLflow)"
    assert not any("dvc repro" in line or "nothing is lost" in line for line in said)


def test_ctrl_c_waits_no_longer_than_a_second() -> None:
    run = BlockedRun()

    def train() -> None:
        with Stream(lambda: run, patience=60) as stream:
            stream.send(points(1))
            raise KeyboardInterrupt

    since = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        train()
    assert time.monotonic() - since < 2
    run.answer.set()
