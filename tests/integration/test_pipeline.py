"""The pipeline as a person runs it; the tests of this file follow one another in one project."""

import hashlib
import re

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
import torchvision

from .conftest import Project

HEADLINE = ["test", "validation", "train", "gap", "champion", "loss_gap", "epoch", "ece"]
STAGES = ["download", "kernel_check", "train", "evaluate", "export", "register"]


def weights_digest(project: Project) -> str:
    return hashlib.sha256((project.path / "models/lenet5.pth").read_bytes()).hexdigest()


def test_first_repro_leaves_every_out_and_one_whole_run(finished: Project) -> None:
    evaluation = finished.json("evaluation")
    for split in ("train", "validation", "test"):
        figures = evaluation[split]
        assert figures["accuracy_low"] < figures["accuracy"] < figures["accuracy_high"]
        assert figures["loss_low"] < figures["loss"] < figures["loss_high"]
    assert evaluation["gap"]["accuracy"] == pytest.approx(
        evaluation["train"]["accuracy"] - evaluation["validation"]["accuracy"]
    )
    assert evaluation["test"]["accuracy"] > 0.65
    (run,) = finished.runs()
    assert run.info.status == "FINISHED"
    for curve in ("loss/train", "loss/validation", "loss/test", "accuracy/test", "gap/loss", "learning_rate"):
        assert finished.steps(run, curve) == [1, 2]
    assert run.data.metrics["test_accuracy"] == evaluation["test"]["accuracy"]
    assert run.data.params["train.lr"] == "0.002"
    (version,) = finished.mlflow().search_model_versions()
    assert finished.mlflow().get_registered_model(version.name).aliases == {"champion": version.version}


def test_torchvision_opens_the_downloaded_data(finished: Project) -> None:
    assert len(torchvision.datasets.FashionMNIST(finished.path / "data", train=True)) == 60_000


def test_history_and_predictions_agree_with_the_evaluation(finished: Project) -> None:
    history = pd.read_csv(finished.path / "plots/history.csv")
    predictions = pd.read_csv(finished.path / "plots/predictions.csv")
    chosen = history.set_index("epoch").loc[finished.json("training")["chosen_epoch"]]
    test = finished.json("evaluation")["test"]
    assert (predictions["true"] == predictions["predicted"]).mean() == pytest.approx(test["accuracy"])
    assert chosen["test_loss"] == pytest.approx(test["loss"], rel=1e-4)
    assert chosen["validation_loss"] == history["validation_loss"].min()


def test_onnx_model_takes_any_batch_and_says_what_it_is(finished: Project) -> None:
    path = finished.path / "models/lenet5.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 1, 28, 28]
    assert session.get_outputs()[0].shape == ["batch", 10]
    for batch in (1, 7):
        (logits,) = session.run(None, {"images": np.zeros((batch, 1, 28, 28), np.float32)})
        assert logits.shape == (batch, 10)
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert metadata["weights_sha256"] == weights_digest(finished)
    assert "Ankle boot" in metadata["classes"]
    assert "/ 255" in metadata["preprocessing"]
    program = torch.export.load(finished.path / "models/lenet5.pt2").module()
    assert program(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["metrics", "show"], "loss_gap"),
        (["params", "diff", "--all"], "train.lr"),
        (["dag"], "kernel_check"),
        (["plots", "show", "--json"], "validation_loss"),
        (["plots", "show", "--json"], "plots/mistakes.png"),
    ],
)
def test_dvc_says_something_useful(finished: Project, command: list[str], shown: str) -> None:
    assert shown in finished.run("dvc", *command).stdout


def test_dvcs_tables_hold_the_headline_and_fit_into_100_columns(finished: Project) -> None:
    figures, evaluation = finished.json("headline"), finished.json("evaluation")
    assert list(figures) == HEADLINE
    for name in ("test", "validation", "train"):
        assert figures[name] == round(evaluation[name]["accuracy"], 4)
    assert figures["gap"] == round(evaluation["gap"]["accuracy"], 4)
    assert figures["champion"] is (finished.json("registration")["became"] == "champion")
    assert figures["epoch"] == finished.json("training")["chosen_epoch"]
    shown = finished.run("dvc", "metrics", "show").stdout.splitlines()
    assert sorted(shown[0].split()) == sorted(["Path", *HEADLINE])
    assert max(map(len, shown)) <= 100


def test_second_repro_runs_nothing(finished: Project) -> None:
    assert finished.repro() == []
    assert len(finished.runs()) == 1


def test_a_change_of_export_runs_export_and_register_in_a_run_that_names_its_origin(finished: Project) -> None:
    (first,) = finished.runs()
    finished.edit({"export.opset": 21})
    assert finished.repro() == ["export", "register"]
    second = finished.runs()[1]
    assert second.data.tags["history_from"] == first.info.run_id
    assert second.data.params["export.opset"] == "21"
    assert finished.steps(second, "loss/test") == [1, 2]
    assert finished.mlflow().get_run(first.info.run_id).data.params["export.opset"] == "20"
    assert len(finished.mlflow().search_model_versions()) == 1  # the weights are the same


def test_a_change_of_the_learning_rate_retrains_and_going_back_does_not(finished: Project) -> None:
    before = weights_digest(finished)
    finished.edit({"train.lr": 0.001, "export.opset": 20})
    assert finished.repro() == ["train", "evaluate", "export", "register"]
    assert weights_digest(finished) != before
    assert len(finished.runs()) == 3
    assert "train.lr" in finished.run("dvc", "params", "diff").stdout
    changed = finished.run("dvc", "metrics", "diff").stdout.splitlines()[1:]
    assert {tuple(line.split()[:2]) for line in changed} <= {("metrics/headline.json", name) for name in HEADLINE}
    assert any(line.split()[1] == "test" for line in changed)
    finished.edit({"train.lr": 0.002})
    assert "train" not in finished.repro()
    assert weights_digest(finished) == before
    assert len(finished.runs()) == 3


def test_training_again_gives_the_same_bytes_and_no_second_run(finished: Project) -> None:
    before = weights_digest(finished)
    assert "train" in finished.repro("--force", "--single-item", "train")
    assert weights_digest(finished) == before
    assert finished.repro() == []
    assert len(finished.runs()) == 3


def test_an_experiment_takes_params_from_the_command_line_and_reaches_a_usable_accuracy(finished: Project) -> None:
    changes = ("data.validation_size=5000", "model.pooling=max", "train.lr=0.003")
    finished.run("dvc", "exp", "run", "--name", "max-pooling", *(part for one in changes for part in ("-S", one)))
    assert "max-pooling" in finished.run("dvc", "exp", "show", "--csv").stdout
    last = finished.runs()[-1]
    assert last.info.run_name == "max-pooling"
    assert last.data.params["model.pooling"] == "max"
    assert finished.json("evaluation")["test"]["accuracy"] > 0.84


def test_all_sixty_thousand_images_train_when_none_is_held_out(finished: Project) -> None:
    finished.edit({"data.validation_size": 0, "train.epochs": 1, "data.train_sample": 1000})
    printed = finished.stage("train").stdout
    assert "60,000 training images" in printed
    assert re.search(r"no validation images, accuracy gap to test -?[0-9.]+ points", printed)
    assert re.search(r"^kept: epoch 1 of 1 \(the last\); no validation images", printed, re.MULTILINE)
    assert "the gap is to the test images" in finished.stage("evaluate").stdout
    evaluation = finished.json("evaluation")
    assert "validation" not in evaluation
    assert evaluation["gap"] == evaluation["gap_test"]
    assert finished.json("training")["chosen_epoch"] == 1
