import hashlib
from pathlib import Path

import pytest
import yaml

from lenet5.errors import UserError
from lenet5.params import Params
from lenet5.record.locked import refuse_other_outs, refuse_other_params

SECTIONS = {
    "kernel_check": ["kernel_check"],
    "train": ["data", "model", "train"],
    "evaluate": ["data", "model", "train", "evaluate"],
    "export": ["model", "export"],
}


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture
def outs(workspace: Path, params: Params) -> list[Path]:
    """Two files that the pipeline left, and its dvc.lock."""
    paths = [Path("metrics.json"), Path("history.csv")]
    for path in paths:
        path.write_text(path.name)
    now = params.model_dump(by_alias=True)
    stages = {name: {"params": {"params.yaml": {one: now[one] for one in used}}} for name, used in SECTIONS.items()}
    left = [{"path": str(path), "hash": "md5", "md5": md5(path)} for path in paths]
    stages["train"]["outs"] = left
    (workspace / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    return paths


@pytest.mark.usefixtures("outs")
def test_params_that_no_stage_has_run_with_are_refused(params: Params) -> None:
    refuse_other_params(params)
    for name, section, value in (
        ("kernel_check", "kernel_check", {"max_steps": 7}),
        ("train", "train", {"lr": 0.7}),
        ("evaluate", "evaluate", {"confidence": 0.7}),
        ("export", "export", {"tolerance": 0.7}),
    ):
        other = params.model_copy(update={section: getattr(params, section).model_copy(update=value)})
        with pytest.raises(UserError, match=f"params.yaml has changed since {name} ran; `dvc repro` first"):
            refuse_other_params(other)
    other = params.model_copy(update={"register_": params.register_.model_copy(update={"alpha": 0.01})})
    refuse_other_params(other)


def test_an_out_of_another_result_is_refused(outs: list[Path]) -> None:
    refuse_other_outs(outs)
    outs[1].write_text("of another branch")
    refuse_other_outs(outs[:1])
    with pytest.raises(UserError, match=r"history\.csv: not what dvc\.lock holds; `dvc checkout`"):
        refuse_other_outs(outs)
    outs[1].unlink()  # who reads it says so
    refuse_other_outs(outs)


@pytest.mark.parametrize("content", ["", "<<<<<<< ours\n", "- a list\n", "schema: '2.0'\n", "stages: {train: [1]}\n"])
def test_a_broken_dvc_lock_is_told(outs: list[Path], params: Params, content: str) -> None:
    Path("dvc.lock").write_text(content)
    for refuse in (lambda: refuse_other_params(params), lambda: refuse_other_outs(outs)):
        with pytest.raises(UserError, match="not a file DVC wrote; move it away"):
            refuse()


@pytest.mark.usefixtures("workspace")
def test_a_pipeline_that_has_not_run_is_told(params: Params) -> None:
    with pytest.raises(UserError, match="has not run here yet"):
        refuse_other_params(params)
