import errno
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from lenet5.commands import seeds
from lenet5.commands.seeds_display import SeedsDisplay
from lenet5.commands.seeds_journal import Replica, journal
from lenet5.errors import UserError
from lenet5.results.history import EpochRow
from lenet5.search.ray_settings import refuse_share
from lenet5.workspace import SEEDS
from tests.params import CONTENT
from tests.unit.search.test_driver import Stage

KEY = "k" * 64


def row(epoch: int, **changes: Any) -> EpochRow:
    names = ("running", "train", "validation", "test", "gap")
    values = {f"{name}_{kind}": 0.1 + epoch / 7 for name in names for kind in ("loss", "accuracy")}
    return EpochRow(epoch=epoch, learning_rate=1 / 3, **(values | changes))


FIRST = Replica(3, [row(1), row(2)], {"test_accuracy": 2 / 3})
SECOND = Replica(4, [row(1, validation_loss=None)], {"test_accuracy": 1 / 7})


def test_what_has_finished_is_read_back_digit_for_digit(tmp_path: Path) -> None:
    with journal(tmp_path, KEY) as kept:
        assert kept.read() == {}
        kept.add(FIRST)
        kept.add(SECOND)
    with journal(tmp_path, KEY) as kept:
        assert kept.read() == {3: FIRST, 4: SECOND}
    with journal(tmp_path, "another" * 8) as kept:
        assert kept.read() == {}


def test_a_line_that_was_cut_or_damaged_costs_its_own_seed_alone(tmp_path: Path) -> None:
    with journal(tmp_path, KEY) as kept:
        kept.add(FIRST)
        kept.add(SECOND)
        (path,) = tmp_path.glob("*.jsonl")
        whole = path.read_bytes()
        for cut in range(1, len(whole) - whole.rindex(b"{") + 100, 7):
            path.write_bytes(whole[:-cut])
            assert kept.read().get(3) == FIRST
        kept.add(SECOND)
        assert kept.read() == {3: FIRST, 4: SECOND}
        path.write_bytes(b'\xff\x00{"seed": 5}\n[1]\n7\n' + whole)
        assert kept.read() == {3: FIRST, 4: SECOND}


def test_ctrl_c_while_the_rest_is_sent_leaves_no_run_that_seems_to_run(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow:
        """A store that was away while the seeds were trained, and answers slowly now."""

        away, said = True, ""

        def add(self, *_: object) -> None:
            if self.away:
                self.away = False
                raise UserError("the server is away")
            raise KeyboardInterrupt

        def interrupted(self) -> None:
            self.said += "interrupted"

    record = Slow()
    (workspace / "params.yaml").write_text(yaml.safe_dump(CONTENT))
    monkeypatch.setattr(seeds, "_on_this_machine", lambda params, _: (params, KEY, Stage(lambda _: [])))
    monkeypatch.setattr(seeds, "_open_record", lambda *_: record)
    with journal(workspace / SEEDS, KEY) as kept:
        for seed in (0, 1):
            kept.add(Replica(seed, [row(1)], {"test_accuracy": 1 / 3}))
    with pytest.raises(KeyboardInterrupt):
        seeds.seeds(2, None, 0)
    assert record.said == "interrupted"


def test_a_store_that_cannot_write_its_files_ends_no_training() -> None:
    class Full:
        def add(self, *_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", "changes.diff")

    console = Console(width=200)
    with console.capture() as said, SeedsDisplay(console, [3, 4], 2) as display:
        sender = seeds._Sender(Full())
        sender.send(FIRST, display)
        sender.send(SECOND, display)
    assert said.get().count("training goes on, and the rest is sent at its end") == 1


def test_seeds_that_are_trained_together_are_known_by_the_code_that_does_so(monkeypatch: pytest.MonkeyPatch) -> None:
    before = seeds._stacked_key("stacked", KEY)
    assert before == seeds._stacked_key("stacked", KEY) != seeds._stacked_key("cards of a cluster", KEY)
    monkeypatch.setattr(seeds.inspect, "getsource", lambda _: "another way")
    assert seeds._stacked_key("stacked", KEY) != before


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with journal(tmp_path, KEY), pytest.raises(UserError, match="another `lenet5 seeds`"), journal(tmp_path, KEY):
        pass


@pytest.mark.parametrize(("gpus", "on"), [(-0.5, "host"), (1.5, "host"), (float("nan"), "host"), (0.5, None)])
def test_a_share_of_a_card_that_cannot_be_had_is_refused(gpus: float, on: str | None) -> None:
    with pytest.raises(UserError, match="--gpus-per-trial"):
        refuse_share(gpus, on)
    refuse_share(0.5, "host")
    refuse_share(0, None)


def test_a_terminal_shows_every_seed_those_under_way_first() -> None:
    console = Console(force_terminal=True, width=90, height=40, record=True)
    with console.capture(), SeedsDisplay(console, [3, 4, 5, 6], 8) as display:
        display.finished(3, 8, FIRST.figures)
        display.epoch(5, row(2, validation_loss=0.625))
        table = display._table()
    console.print(table)
    text = console.export_text()
    assert "1 of 4 seeds have finished" in text
    lines = [line.split() for line in text.splitlines() if line.startswith("│")]
    cells = [[cell for cell in line if cell != "│"] for line in lines]
    assert [line[0] for line in cells] == ["5", "4", "6", "3"]
    assert cells[0][1:3] == ["2/8", "0.6250"]
    assert cells[3][1:] == ["finished", "0.6667"]
    assert cells[1][1] == "waits"
