import base64
import json
import re
import zlib
from typing import Any

from lenet5.params import Params, flat_params
from lenet5.record.experiment_page import CURVES, VIEW, curves_page, experiment_tags, outdated_tags, run_page
from lenet5.record.result import _CURVES

TAG, CURVES_TAG = (f"mlflow.sharedViewState.{view}" for view in (VIEW, CURVES))


def unpacked(tag: str) -> dict[str, Any]:
    packed = json.loads(tag)["state"].removeprefix("deflate;")
    state: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return state


def with_columns(tag: str, columns: list[str]) -> str:
    state = json.dumps(unpacked(tag) | {"selectedColumns": columns})
    return json.dumps(
        json.loads(tag) | {"state": f"deflate;{base64.b64encode(zlib.compress(state.encode())).decode()}"}
    )


def test_the_view_begins_with_test_accuracy_and_sorts_by_it(params: Params) -> None:
    state = unpacked(experiment_tags()[TAG])
    columns = state["selectedColumns"]
    assert columns[0] == state["orderByKey"] == "metrics.`test_accuracy`"
    assert not state["orderByAsc"]
    shown = [found.group(1) for column in columns if (found := re.fullmatch("params.`(.*)`", column))]
    assert shown
    assert set(shown) <= set(flat_params(params, "model", "train"))


def test_a_view_of_an_earlier_version_is_renewed_and_a_persons_own_is_left_alone() -> None:
    tags = experiment_tags()
    earlier = with_columns(tags[TAG], ["metrics.`final/test_accuracy`", "params.`train.lr`"])
    renewed = outdated_tags({TAG: earlier})
    assert {tag: unpacked(view) for tag, view in renewed.items()} == {
        tag: unpacked(tags[tag]) for tag in (TAG, CURVES_TAG)
    }
    own = with_columns(tags[TAG], ["metrics.`gap_loss`"])
    for left in (tags, tags | {TAG: own}, tags | {TAG: "not a view"}, tags | {TAG: "{}"}, {}):
        assert outdated_tags(left) == {}


def test_charts_show_what_training_streams_and_the_latest_runs_come_first() -> None:
    state = unpacked(experiment_tags()[CURVES_TAG])
    charts = [chart["selectedMetricKeys"] for chart in state["compareRunCharts"]]
    assert charts[0] == ["loss/train", "loss/validation", "loss/test"]
    assert {curve for chart in charts for curve in chart} <= set(_CURVES.values())
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == {
        section["uuid"] for section in state["compareRunSections"]
    }
    assert (state["orderByKey"], state["orderByAsc"]) == ("attributes.start_time", False)


def test_links_open_model_training_on_the_server_without_its_password() -> None:
    page = "/#/experiments/1/runs/abc?workflowType=machine_learning"
    assert run_page("sqlite:////somewhere/mlflow.db", "1", "abc") == f"http://127.0.0.1:5000{page}"
    assert run_page("https://ann:secret@mlflow.example.org/", "1", "abc") == f"https://mlflow.example.org{page}"
    assert "runs?workflowType=machine_learning&viewStateShareKey=curves" in curves_page("http://host:5000", "1")
