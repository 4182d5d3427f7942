"""`lenet5 compare` on real runs, the workspace, and what cannot be compared."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest

from lenet5.commands.cli import main
from lenet5.record.promotion import mcnemar

from .conftest import Project

MODEL = "models:/lenet5-fashionmnist"


class Comparer:
    """`lenet5 compare`, called in this process: it takes longer to start than to run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, project: Project, *words: str) -> str:
        """The output, without the lines that name A and B."""
        status, output, errors = self._call(project, words)
        assert (status, errors) == (0, "")
        names, title, rest = output.partition("Params that differ")
        assert len(names.split("\n")) == 4
        return title + rest

    def refused(self, project: Project, *words: str) -> str:
        status, output, errors = self._call(project, words)
        assert (status, output) == (1, "")
        (line,) = errors.splitlines()
        assert line.startswith("lenet5 compare: ")
        return line

    def _call(self, project: Project, words: tuple[str, ...]) -> tuple[object, str, str]:
        with self._monkeypatch.context() as patch:
            for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
                patch.delenv(name, raising=False)
            patch.setenv("COLUMNS", "80")
            patch.chdir(project.path)
            with pytest.raises(SystemExit) as ended:
                main(["compare", *words])
        return ended.value.code, *self._capsys.readouterr()


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Comparer:
    return Comparer(monkeypatch, capsys)


@pytest.fixture(scope="module")
def two(finished: Project) -> Project:
    """A project with two runs; the outs in the workspace are the second's."""
    shutil.copy(finished.path / "plots/predictions.csv", finished.path / "first.csv")
    finished.edit({"model.pooling": "max", "train.epochs": 1})
    finished.repro()
    return finished


def test_two_runs_are_compared_by_params_figures_and_mcnemars_test(two: Project, tmp_path: Path) -> None:
    first, second = two.runs()
    page = tmp_path / "compared.html"
    words = ("compare", first.info.run_id, second.info.run_id, "--html", str(page))
    text = two.run("lenet5", *words).stdout
    params, _, figures = text.partition("Figures")
    lines = [line.split() for line in params.splitlines()]
    assert ["model.pooling", "avg", "max"] in lines
    assert ["train.epochs", "2", "1"] in lines
    assert "train.lr" not in params
    for run in (first, second):
        low, high = (run.data.metrics[f"test_accuracy_{end}"] for end in ("low", "high"))
        assert f"{run.data.metrics['test_accuracy']:.2%} [{low:.2%}, {high:.2%}]".replace("%", "") in figures
    right = [
        table["true"] == table["predicted"]
        for table in map(pd.read_csv, (two.path / "first.csv", two.path / "plots/predictions.csv"))
    ]
    first_only, second_only = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    assert f" {first_only:,} are right only with A, {second_only:,} only with B" in figures
    assert f"p = {mcnemar(first_only, second_only):.2g}" in figures
    written = page.read_text()
    assert first.info.run_name in written
    assert f"{first_only:,} are right only with A" in written


def test_a_run_is_found_by_every_name_it_has(two: Project, compare: Comparer) -> None:
    first, second = two.runs()
    by_id = compare(two, first.info.run_id, second.info.run_id)
    assert compare(two, first.info.run_name, second.info.run_name) == by_id
    assert compare(two, f"{MODEL}/1", f"{MODEL}/2") == by_id
    assert compare(two, first.info.run_id, "workspace") == by_id
    champion = two.mlflow().get_model_version_by_alias(MODEL.removeprefix("models:/"), "champion")
    assert champion.run_id == (first if int(champion.version) == 1 else second).info.run_id
    assert compare(two, "champion", "workspace") == compare(two, f"{MODEL}/{champion.version}", "workspace")


def test_any_number_of_results_is_ranked_and_without_names_the_best(two: Project, compare: Comparer) -> None:
    first, second = two.runs()
    assert compare(two) in (
        compare(two, first.info.run_id, second.info.run_id),
        compare(two, second.info.run_id, first.info.run_id),
    )
    assert compare(two, "champion") == compare(two, "champion", "workspace")
    page = two.path / "board.html"
    words = ("compare", first.info.run_name, second.info.run_name, "workspace", "--html", str(page))
    text = two.run("lenet5", *words).stdout
    best = max(run.data.metrics["test_accuracy"] for run in (first, second))
    _, _, board = text.partition("The best first")
    assert f" {best:.2%}".replace("%", " [") in board.splitlines()[4]
    assert "corrected by Holm's method for 2 tests" in text
    assert page.read_text().count("data:image/png;base64,") == 1


def test_the_workspace_is_its_own_run(two: Project, compare: Comparer) -> None:
    text = compare(two, "workspace", two.runs()[1].info.run_id)
    assert "none" in text.partition("Figures")[0]
    assert "Neither is better" in text


def test_what_cannot_be_compared_is_one_line(two: Project, compare: Comparer, tmp_path: Path) -> None:
    project = two.copy(tmp_path / "project")
    client = project.mlflow()
    first, second = project.runs()
    unfinished = client.create_run(first.info.experiment_id, run_name="unfinished").info.run_id
    for name, said in {
        "nobody": "no run of this id or name",
        "o'clock": "no run of this id or name",
        "0" * 32: "not found",
        f"{MODEL}@nobody": "alias nobody not found",
        f"{MODEL}/9": "not found",
        unfinished: "not a complete result",
        "unfinished": "not a complete result",
    }.items():
        assert said in compare.refused(project, "workspace", name)

    client.set_tag(second.info.run_id, "mlflow.runName", "a [red] one [/]")
    assert "neither is better" in compare(project, "workspace", "a [red] one [/]").lower()
    client.set_tag(second.info.run_id, "mlflow.runName", first.info.run_name)
    assert "2 runs have this name" in compare.refused(project, "workspace", first.info.run_name)

    client.set_tag(first.info.run_id, "digest.data", "of other files")
    assert "different test images" in compare.refused(project, first.info.run_id, second.info.run_id)

    with closing(sqlite3.connect(project.path / "mlflow.db")) as record, record:
        record.execute("UPDATE runs SET artifact_uri = ?", [(tmp_path / "gone").as_uri()])
    assert "metrics/evaluation.json of run" in compare.refused(project, "workspace", second.info.run_id)

    assert "ends in .html" in compare.refused(project, "workspace", "workspace", "--html", str(tmp_path))
    (tmp_path / "folder.html").mkdir()
    page = str(tmp_path / "folder.html")
    assert "cannot be written" in compare.refused(project, "workspace", "workspace", "--html", page)

    project.edit({"train.lr": 0.1})
    assert "changed since train ran; `dvc repro` first" in compare.refused(project, "workspace", second.info.run_id)


def test_a_workspace_that_has_not_run_says_so(two: Project, compare: Comparer, tmp_path: Path) -> None:
    project = two.copy(tmp_path / "project")
    history = project.path / "plots/history.csv"
    history.write_bytes(history.read_bytes() + b"\n")  # another branch's, left by `git switch`
    assert "plots/history.csv: not what dvc.lock holds; `dvc ch" in compare.refused(project, "workspace", "champion")
    (project.path / "plots/predictions.csv").unlink()
    history.unlink()
    assert "plots/predictions.csv: not found; `dvc repro evaluate`" in compare.refused(project, "workspace", "champion")
    for content in ("", "<<<<<<< ours\n", "- a list\n", "schema: '2.0'\n"):
        (project.path / "dvc.lock").write_text(content)
        assert "move it away" in compare.refused(project, "workspace", "champion")
    (project.path / "dvc.lock").unlink()
    assert "has not run here yet" in compare.refused(project, "workspace", "champion")
