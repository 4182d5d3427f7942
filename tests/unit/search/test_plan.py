import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from lenet5.errors import UserError
from lenet5.params import Params, load_params
from lenet5.search.plan import Plan, load_plan, schema, shared_params, trial_params

PLAN: dict[str, Any] = {
    "trials": 4,
    "workers": 2,
    "objective": "validation_loss",
    "prune": {"after": 0.25},
    "fixed": {"train.optimizer": "adamw"},
    "space": {
        "model.activation": ["relu", "tanh"],
        "train.lr": {"low": 1.0e-4, "high": 1.0e-2, "log": True},
        "train.augmentation.shift": {"low": 0, "high": 3},
    },
}


def load(folder: Path, base: Params, **changes: Any) -> Plan:
    path = folder / "wide.yaml"
    path.write_text(yaml.safe_dump(PLAN | changes, sort_keys=False))
    return load_plan(path, base)


def space(**changes: Any) -> dict[str, Any]:
    return {"space": {name.replace("__", "."): value for name, value in changes.items()}}


def test_a_trial_has_the_base_with_what_is_fixed_and_what_is_tried(tmp_path: Path, params: Params) -> None:
    plan = load(tmp_path, params)
    tried = trial_params(plan, params, {"train.lr": 0.001, "train.augmentation.shift": 2})
    changes = {
        "optimizer": "adamw",
        "lr": 0.001,
        "augmentation": params.train.augmentation.model_copy(update={"shift": 2}),
    }
    assert tried == params.model_copy(update={"train": params.train.model_copy(update=changes)})


def test_whole_bounds_are_numbers_like_others_where_a_param_is_no_whole_number(tmp_path: Path, params: Params) -> None:
    ranges = load(tmp_path, params, **space(train__lr={"low": 1, "high": 3}, train__batch_size={"low": 50, "high": 99}))
    bounds = [repr((of.low, of.high)) for of in ranges.space.values() if not isinstance(of, list)]
    assert bounds == ["(1.0, 3.0)", "(50, 99)"]


def test_what_all_trials_share_is_told_where_the_base_alone_would_not_go_with_what_is_fixed(
    tmp_path: Path, params: Params
) -> None:
    base = params.model_copy(update={"train": params.train.model_copy(update={"optimizer": "sgd", "momentum": 0.9})})
    plan = load(tmp_path, base, **space(train__momentum=[0.0], train__lr=[0.1, 0.2]))
    shared = shared_params(plan, base)
    assert shared["train.optimizer"] == "adamw"
    assert not {"train.momentum", "train.lr"} & shared.keys()


def test_params_that_no_longer_go_with_the_plan_are_told(tmp_path: Path, params: Params) -> None:
    plan = load(tmp_path, params, fixed={"train.optimizer": "adamw"}, **space(train__lr=[0.1, 0.2]))
    edited = params.model_copy(update={"train": params.train.model_copy(update={"optimizer": "sgd", "momentum": 0.9})})
    with pytest.raises(UserError, match=r"^params\.yaml: train\.momentum is for sgd"):
        trial_params(plan, edited, {"train.lr": 0.1})


def test_pruning_may_be_left_out(tmp_path: Path, params: Params) -> None:
    assert load(tmp_path, params, prune=False).prune is False


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"trial": 3}, "trial: unknown key (value 3); did you mean trials?"),
        ({"objective": "test_accuracy"}, "objective: 'test_accuracy' is not allowed"),
        ({"prune": {"after": 1.0}}, "prune.after: 1.0 is not allowed: input should be less than 1"),
        ({"prune": True}, "prune: True is not allowed"),
        ({"space": {}}, "space: {} is not allowed"),
        (space(model__activation=[]), "space: model.activation has no values"),
        (space(model__activation=["relu", "relu"]), "space: model.activation has a value twice"),
        (space(model__activation=["gelu"]), "model.activation: 'gelu' is not allowed"),
        (space(model__activation={"low": 0, "high": 1}), "space: model.activation is no number"),
        (space(train__learning_rate=[1.0]), "space: train.learning_rate is no param"),
        (space(train__l=[1.0]), "space: train.l is no param; did you mean train.lr?"),
        (space(train__augmentation=[1.0]), "space: train.augmentation is a section"),
        (space(train={"lr": [0.1]}), "space: train is a section; give one of its params: train.epochs,"),
        ({"fixed": {"train": {"lr": 0.1}}}, "fixed: train is a section; give one of its params: train.epochs,"),
        (space(train__lr=0.1), "space.train.lr: 0.1 is not allowed: give a list of values, or low and high;"),
        (space(train__lr={"low": 0.1}), "space.train.lr.high: missing; put it there"),
        (space(train__lr={"low": 0.1, "high": 10**400}), "space.train.lr.high: 1000000"),
        ({"prune": 0.25}, "prune: 0.25 is not allowed: it takes keys with values"),
        (space(train__lr={"low": 0.1, "high": 0.01}), "space: train.lr has low 0.1, which is not below high 0.01"),
        (space(train__lr={"low": 0.0, "high": 1.0, "log": True}), "space: train.lr has low 0.0, which has no log"),
        (space(train__lr={"low": -0.1, "high": 0.01}), "train.lr: -0.1 is not allowed: input should be greater than 0"),
        (space(train__lr={"low": float("nan"), "high": 0.01}), "space.train.lr.low: nan is not allowed"),
        (space(train__lr={"low": 0.1, "high": 1.0, "lag": True}), "space.train.lr.lag: unknown key"),
        (space(model__dropout={"low": 0.0, "high": 1.0}), "model.dropout: 1.0 is not allowed"),
        (space(train__batch_size={"low": 1.5, "high": 3.0}), "space: train.batch_size is a whole number"),
        (space(train__seed=[0, 1]), "space: train.seed cannot be searched"),
        (space(train__weights=["last", "best_validation"]), "space: train.weights cannot be searched"),
        (space(data__split_seed=[0, 1]), "space: data.split_seed is not a param of model or train"),
        (space(register__alpha=[0.1]), "space: register.alpha is not a param of model or train"),
        (space(download__timeout=[1]), "space: download.timeout is not a param of model or train"),
        (space(evaluate__confidence=[0.1]), "space: evaluate.confidence is not a param of model or train"),
        (space(export__opset=[20]), "space: export.opset is not a param of model or train"),
        ({"fixed": {"register.alpha": 0.1}}, "fixed: register.alpha is not a param of data or model or train"),
        ({"fixed": {"data.validation_size": 0}}, "data.validation_size is 0"),
        ({"fixed": {"train.lr": 0.1}}, "train.lr stands under fixed and under space"),
        ({"fixed": {"train.optimizer": "adam"}}, "train.optimizer: 'adam' is not allowed"),
        (
            {"fixed": {}} | space(train__optimizer=["sgd", "adamw"], train__momentum=[0.0, 0.9]),
            "train.momentum is for sgd: set it to 0, or train.optimizer to sgd (the space has train.optimizer: adamw "
            "with train.momentum: 0.9)",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_line_before_anything_starts(
    tmp_path: Path, params: Params, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, params, **changes)
    assert str(caught.value).startswith(f"{tmp_path}/wide.yaml: {told}")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_no_mapping_is_told(tmp_path: Path, params: Params) -> None:
    with pytest.raises(UserError, match="no such file; sweeps/ holds those"):
        load_plan(tmp_path / "none.yaml", params)
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UserError, match="must hold the keys trials, workers, objective, prune, fixed, space"):
        load_plan(tmp_path / "list.yaml", params)


def test_the_schema_is_up_to_date_and_agrees_with_the_files(repository: Path) -> None:
    kept = json.loads((repository / "sweep.schema.json").read_text())
    assert kept == json.loads(json.dumps(schema())), "`make schema` writes it anew"
    validator = jsonschema.Draft202012Validator(kept)
    validator.check_schema(kept)
    files = sorted((repository / "sweeps").glob("*.yaml"))
    assert {"small.yaml", "wide.yaml"} <= {path.name for path in files}
    base = load_params(repository / "params.yaml")
    for path in files:
        validator.validate(yaml.safe_load(path.read_text()))
        load_plan(path, base)
        assert path.read_text().startswith("# yaml-language-server: $schema=../sweep.schema.json\n")
    validator.validate(PLAN)
    for wrong in (
        {"train.seed": [1]},
        {"train.lr": [-1]},
        {"train.lr": {"low": 1}},
        {"train.lr": {"low": -1, "high": 1}},
        {"model.activation": {"low": 0, "high": 1}},
        {"train.l": [1]},
        {"train.lr": []},
    ):
        assert not validator.is_valid(PLAN | {"space": wrong}), wrong
