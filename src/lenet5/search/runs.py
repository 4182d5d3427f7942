"""Jobs that are all wanted to their end, whatever happens to the workers."""

from collections import Counter, deque
from collections.abc import Iterator, Sequence

from lenet5.errors import UserError
from lenet5.search.engine import Engine, Event, Failed, Gained, Job, Lost

LOST_AT_MOST = 3
"""Times that a job may take its worker down before it is the job's own fault."""

_WAITING_SECONDS = 1.0


def run_all(engine: Engine, jobs: Sequence[Job]) -> Iterator[Event]:
    """Run every job to its end, as many beside each other as ``engine`` has room for; each event as it comes.

    A job that was lost starts again, from its beginning; with its machine, as often as may be. One that is hopeless has
    come to its end, too. Raises UserError where one fails otherwise, or takes its worker down too often.
    """
    waiting, running, lost = deque(jobs), dict[str, Job](), Counter[str]()
    while waiting or running:
        for _ in range(min(len(waiting), engine.free())):
            job = waiting.popleft()
            running[job.key] = job
            engine.start(job)
        for event in engine.events(_WAITING_SECONDS):
            if isinstance(event, Lost):
                lost[event.key] += not event.with_machine
            if not isinstance(event, Gained):
                job = running.pop(event.key)
                if isinstance(event, Lost):
                    waiting.appendleft(job)
            _refuse(event, lost[event.key])
            yield event


def _refuse(event: Event, lost: int) -> None:
    if isinstance(event, Failed) and not event.hopeless:
        raise UserError(f"{event.key}: {event.reason}")
    if isinstance(event, Lost) and lost >= LOST_AT_MOST:
        raise UserError(f"{event.key}: lost {lost} times, at last because {event.reason}; see what ends its workers")
