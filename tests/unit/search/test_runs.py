from collections.abc import Iterator, Mapping

import pytest

from lenet5.errors import UserError
from lenet5.search.engine import Ended, Event, Failed, Gained, Job, Lost
from lenet5.search.runs import run_all

JOBS = [Job(f"seed {number}", {}) for number in range(5)]


class Scripted:
    """An engine whose jobs end as they are told to, the first word at the first start."""

    def __init__(self, room: int, fates: Mapping[str, list[str]]) -> None:
        self.room, self.fates = room, {key: list(words) for key, words in fates.items()}
        self.at: list[str] = []
        self.started: list[str] = []
        self.most = 0

    def free(self) -> int:
        return self.room - len(self.at)

    def start(self, job: Job) -> None:
        self.at.append(job.key)
        self.started.append(job.key)
        self.most = max(self.most, len(self.at))

    def stop(self, key: str) -> None:
        self.at.remove(key)

    def events(self, timeout: float) -> Iterator[Event]:
        del timeout
        key = self.at.pop(0)
        yield Gained(key, {"epoch": 1})
        words = self.fates.get(key)
        word = words.pop(0) if words else "ends"
        yield {
            "ends": Ended(key),
            "lost": Lost(key, "the lights went out"),
            "fails": Failed(key, "no data", hopeless=False),
            "hopeless": Failed(key, "nan", hopeless=True),
        }[word]

    def close(self) -> None:
        pass


def test_every_job_ends_once_and_no_more_run_than_there_is_room_for() -> None:
    engine = Scripted(2, {})
    events = list(run_all(engine, JOBS))
    assert [event.key for event in events if isinstance(event, Ended)] == [job.key for job in JOBS]
    assert engine.most == 2


def test_a_job_that_was_lost_starts_again_before_those_that_wait() -> None:
    engine = Scripted(1, {"seed 1": ["lost", "lost"]})
    events = list(run_all(engine, JOBS))
    assert engine.started == ["seed 0", "seed 1", "seed 1", "seed 1", "seed 2", "seed 3", "seed 4"]
    assert [event for event in events if isinstance(event, Lost)] == [Lost("seed 1", "the lights went out")] * 2
    assert sum(isinstance(event, Ended) for event in events) == len(JOBS)


def test_a_job_that_is_lost_three_times_is_told_with_what_ended_it() -> None:
    with pytest.raises(UserError, match="seed 1: lost 3 times, at last because the lights went out; see what"):
        list(run_all(Scripted(1, {"seed 1": ["lost", "lost", "lost"]}), JOBS))


def test_a_hopeless_job_has_come_to_its_end_and_the_others_go_on() -> None:
    events = list(run_all(Scripted(2, {"seed 2": ["hopeless"]}), JOBS))
    assert Failed("seed 2", "nan", hopeless=True) in events
    assert sum(isinstance(event, Ended) for event in events) == len(JOBS) - 1


def test_a_job_that_fails_is_told_in_its_own_words() -> None:
    with pytest.raises(UserError, match=r"^seed 2: no data$"):
        list(run_all(Scripted(2, {"seed 2": ["fails"]}), JOBS))
