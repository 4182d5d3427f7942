from dataclasses import asdict, fields, replace
from pathlib import Path

import pandas as pd
import pytest

from lenet5.errors import UserError
from lenet5.files import digest, write_bytes, write_json
from lenet5.outs import CARD, EVALUATION, EXPORT, HISTORY, ONNX, PREDICTIONS, PROGRAM, TRAINING, WEIGHTS
from lenet5.params import AugmentationParams, Params
from lenet5.record.result import (
    SPEED,
    digest_training,
    epoch_points,
    headline,
    history_points,
    model_figures,
    read_predictions,
    read_result,
    readable,
    recorded_figures,
    run_name,
)
from lenet5.results.history import EpochRow, HistoryFile, read_history

FIRST = EpochRow(1, 0.1, 2.0, 0.25, 1.5, 0.5, 1.625, 0.375, 1.75, 0.25, 0.125, 0.125)
SECOND = EpochRow(2, 0.05, 1.0, 0.75, 0.5, 0.875, 1.0, 0.625, 1.25, 0.5, 0.5, 0.25)


def unvalidated(row: EpochRow) -> EpochRow:
    return replace(row, validation_loss=None, validation_accuracy=None)


def table(*rows: EpochRow) -> pd.DataFrame:
    return pd.DataFrame([asdict(row) for row in rows])


def test_streamed_points_are_those_of_the_finished_history_and_the_speed() -> None:
    streamed = [point for row in (FIRST, SECOND) for point in epoch_points(row, images_per_second=5000)]
    later = history_points(table(FIRST, SECOND))
    assert {point[:3] for point in streamed} == {point[:3] for point in later} | {(SPEED, 5000, 1), (SPEED, 5000, 2)}
    assert len(streamed) == len(later) + 2


def test_every_column_of_the_history_has_a_curve_of_its_own() -> None:
    points = {point.key: point for point in history_points(table(SECOND))}
    assert len(points) == len(fields(EpochRow)) - 1
    assert points["loss/validation"].value == 1.0
    assert points["accuracy/validation"].value == 0.625
    assert points["loss/running"].value == 1.0
    assert points["gap/accuracy"].value == 0.25
    assert points["learning_rate"].value == 0.05
    assert {point.step for point in points.values()} == {2}


def test_what_was_not_measured_is_no_point(tmp_path: Path) -> None:
    row = unvalidated(FIRST)
    with HistoryFile(tmp_path / "history.csv") as history:
        history.append(row)
    streamed = {point.key for point in epoch_points(row, 1.0)} - {SPEED}
    later = {point.key for point in history_points(read_history(tmp_path / "history.csv"))}
    assert streamed == later
    assert not any("validation" in key for key in later)
    assert len(later) == 9


def test_points_carry_the_time_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 1_700_000_000_123_456_789)
    points = [*epoch_points(FIRST, 1.0), *history_points(table(FIRST))]
    assert {point.timestamp for point in points} == {1_700_000_000_123}


EVALUATED = {
    "train": {"loss": 0.25, "accuracy": 0.9},
    "test": {"loss": 0.5, "loss_low": 0.4},
    "gap": {"loss": 0.25},
    "onset_of_overfitting": None,
    "calibration_error": 0.125,
    "classes": {
        "T-shirt/top": {"precision": 0.5, "recall": 0.25, "f1": 0.375},
        "Ankle boot": {"precision": 1.0, "recall": 1.0, "f1": 1.0},
    },
}
EXPORTED = {"parity": {"onnx": 1e-6, "program": 2e-6}, "operators": ["Conv"], "weights_sha256": "0"}
TRAINED = {"epochs": 9, "chosen_epoch": 7, "weights_sha256": "0"}


def test_the_figures_of_the_finished_model_have_plain_names_and_leave_nothing_out() -> None:
    assert model_figures(TRAINED, EVALUATED, EXPORTED) == {
        "train_loss": 0.25,
        "train_accuracy": 0.9,
        "test_loss": 0.5,
        "test_loss_low": 0.4,
        "gap_loss": 0.25,
        "calibration_error": 0.125,
        "f1_t_shirt_top": 0.375,
        "f1_ankle_boot": 1.0,
        "best_epoch": 7,
        "export_difference": 2e-6,
    }
    onset = model_figures(TRAINED, EVALUATED | {"onset_of_overfitting": 9}, EXPORTED)["onset_of_overfitting"]
    assert onset == 9
    assert isinstance(onset, float)


def test_a_run_of_an_earlier_version_is_read_under_the_names_of_today() -> None:
    earlier = {
        "final/train_loss": 0.25,
        "final/train_accuracy": 0.9,
        "final/test_loss": 0.5,
        "final/test_loss_low": 0.4,
        "final/gap_loss": 0.25,
        "final/calibration_error": 0.125,
        "f1/T-shirt-top": 0.375,
        "f1/Ankle_boot": 1.0,
        "best/epoch": 7.0,
        "export/largest_difference": 2e-6,
    }
    today = model_figures(TRAINED, EVALUATED, EXPORTED)
    assert recorded_figures(earlier) == today
    assert recorded_figures(today | {"accuracy/test": 0.5}) == today | {"accuracy/test": 0.5}


def test_the_headline_leaves_out_what_was_not_measured_and_says_no_more_than_the_images_can_tell() -> None:
    measured = {"test": {"accuracy": 0.9024}, "train": {"accuracy": 0.93341}, "calibration_error": 0.017281}
    evaluation = measured | {"gap": {"accuracy": 0.031000000000000028, "loss": 0.0927596}}
    assert headline(TRAINED, evaluation, champion=True) == {
        "test": 0.9024,
        "train": 0.9334,
        "gap": 0.031,
        "champion": True,
        "loss_gap": 0.0928,
        "epoch": 7,
        "ece": 0.0173,
    }


def test_figures_are_recorded_to_six_digits() -> None:
    assert readable({"gap_accuracy": 0.027800000000000047, "export_difference": 9.5367431640625e-06}) == {
        "gap_accuracy": 0.0278,
        "export_difference": 9.53674e-06,
    }


def test_a_run_is_named_by_its_recipe_or_by_dvcs_experiment(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    assert run_name(params) == "relu-avg-sgd-0.1-3ep-seed0"
    moved = AugmentationParams(horizontal_flip=False, shift=2, erasing=0, cutmix=0)
    recipe = params.train.model_copy(update={"schedule": "onecycle", "augmentation": moved})
    assert run_name(params.model_copy(update={"train": recipe})) == "relu-avg-sgd-0.1-onecycle-augmented-3ep-seed0"
    monkeypatch.setenv("DVC_EXP_NAME", "puffy-cat")
    assert run_name(params) == "puffy-cat"


@pytest.fixture
def all_outs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outs of a whole pipeline, such as they are read to record them."""
    monkeypatch.chdir(tmp_path)
    for path in (WEIGHTS, ONNX, PROGRAM):
        write_bytes(path, str(path).encode())
    write_json(TRAINING, {"chosen_epoch": 2, "weights_sha256": digest(WEIGHTS.read_bytes())})
    with HistoryFile(HISTORY) as history:
        history.append(FIRST)
        history.append(SECOND)
    write_json(EVALUATION, {"test": {"accuracy": 0.5}})
    write_bytes(PREDICTIONS, b"true,predicted,probability\n")
    digests = {"onnx_sha256": digest(ONNX.read_bytes()), "program_sha256": digest(PROGRAM.read_bytes())}
    write_json(EXPORT, {"parity": {"onnx": 0.0}, **digests})
    write_bytes(CARD, b"# Model card\n")


@pytest.mark.usefixtures("all_outs")
def test_a_result_is_read_back_whole(params: Params) -> None:
    result = read_result(params)
    assert result.history.to_dict("records") == [asdict(FIRST), asdict(SECOND)]
    assert result.training["chosen_epoch"] == 2
    assert result.evaluation == {"test": {"accuracy": 0.5}}
    assert result.card == "# Model card\n"
    assert result.training_digest == digest_training(params)


@pytest.mark.usefixtures("all_outs")
@pytest.mark.parametrize(("path", "stage"), [(WEIGHTS, "train"), (ONNX, "export"), (PROGRAM, "export")], ids=str)
def test_a_model_that_is_not_what_its_stage_left_is_not_recorded(params: Params, path: Path, stage: str) -> None:
    path.write_bytes(b"something else")
    with pytest.raises(UserError, match=f"{path}: not what the stage {stage} left"):
        read_result(params)


@pytest.mark.parametrize("content", ["", "epoch,train_loss\n"])
def test_damaged_predictions_are_told_in_a_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=f"^{path}: not the table that the stage evaluate left"):
        read_predictions(path)


@pytest.mark.usefixtures("all_outs")
@pytest.mark.parametrize("path", [HISTORY, EVALUATION, PREDICTIONS, EXPORT], ids=str)
def test_the_digest_of_a_result_changes_with_every_out(params: Params, path: Path) -> None:
    before = read_result(params).result_digest
    assert read_result(params).result_digest == before
    path.write_text(path.read_text().replace("0.5", "0.625") + "\n")
    assert read_result(params).result_digest != before


@pytest.mark.usefixtures("all_outs")
def test_another_wording_of_the_model_card_is_no_other_result(params: Params) -> None:
    before = read_result(params).result_digest
    CARD.write_text("# The model card\n")
    assert read_result(params).result_digest == before


@pytest.mark.parametrize("changed", [WEIGHTS, HISTORY, TRAINING, "params", None], ids=str)
def test_the_digest_of_a_training_changes_with_its_params_and_outs_alone(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: Path | str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (WEIGHTS, HISTORY, TRAINING):
        path.parent.mkdir(exist_ok=True)
        path.write_text(str(path))
    before = digest_training(params)
    if isinstance(changed, Path):
        changed.write_text("changed")
    section = "train" if changed == "params" else "evaluate"
    key, value = ("seed", 7) if changed == "params" else ("calibration_bins", 3)
    content = params.model_dump(by_alias=True)
    content[section][key] = value
    assert (digest_training(Params.model_validate(content)) == before) == (changed is None)
