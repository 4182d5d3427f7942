"""What the experiment's page in MLflow's UI shows without anyone configuring it, and the addresses of such pages."""

import base64
import json
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from lenet5.errors import without_credentials
from lenet5.record.addresses import is_server

VIEW = "comparison"
"""The saved view with what people compare, in the menu Views above the table of runs: the best runs first."""

CURVES = "curves"
"""The saved view of trainings while they run: the latest first, whose charts MLflow draws."""

GAP_IS_TO = "gap.is_to"
"""The tag that says what a run's gaps compare the training images with."""

EARLIER_GROUP = "final/"
"""What the names of a finished model's figures began with; MLflow's search took them in backquotes only."""

_BY_QUALITY, _BY_TIME = "metrics.`test_accuracy`", "attributes.start_time"
_COLUMNS = (
    _BY_QUALITY,
    "metrics.`validation_accuracy`",
    "metrics.`train_accuracy`",
    "metrics.`gap_accuracy`",
    f"tags.`{GAP_IS_TO}`",
    "metrics.`gap_loss`",
    "metrics.`best_epoch`",
    "params.`model.activation`",
    "params.`model.pooling`",
    "params.`train.optimizer`",
    "params.`train.lr`",
    "params.`train.schedule`",
    "params.`train.augmentation.shift`",
    "params.`train.augmentation.erasing`",
    "params.`train.augmentation.cutmix`",
    "params.`train.loss_q`",
    "params.`train.epochs`",
    "params.`train.seed`",
)
_WIDTH = 140  # pixels, in which the longest name and the values of the tag fit
_OF_EVERY_VIEW = {"attributes.`Run Name`": 250, "runDateAndNestInfo": 130, "duration": 80}
_CHARTS = (
    ("loss/train", "loss/validation", "loss/test"),
    ("accuracy/train", "accuracy/validation", "accuracy/test"),
    ("gap/loss", "gap/accuracy"),
)
_SECTION = "curves"


def curves_page(uri: str, experiment_id: str) -> str:
    """The address of the experiment's curves in the UI of the store at ``uri``."""
    return _page(uri, f"{experiment_id}/runs", f"&viewStateShareKey={CURVES}&compareRunsMode=CHART")


def run_page(uri: str, experiment_id: str, run_id: str) -> str:
    """The address of a run's page in the UI of the store at ``uri``."""
    return _page(uri, f"{experiment_id}/runs/{run_id}", "")


def _page(uri: str, path: str, query: str) -> str:
    """Without the query a browser that is new here is shown MLflow's side for language models."""
    of_mlflow_ui = f"http://127.0.0.1:{os.environ.get('MLFLOW_PORT', '5000')}"
    server = without_credentials(uri).rstrip("/") if is_server(uri) else of_mlflow_ui
    return f"{server}/#/experiments/{path}?workflowType=machine_learning{query}"


def experiment_tags() -> dict[str, str]:
    """The tags of a new experiment: its kind, its description, and its views."""
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": (
            "LeNet-5 on FashionMNIST, one run a result. "
            f"The view `{VIEW}` (menu Views) shows accuracy, overfitting gap and the recipe of each, "
            f"the charts of the view `{CURVES}` how the latest came about, also while they run."
        ),
        **_views(),
    }


def outdated_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """What replaces an experiment's views where its ``tags`` ask for figures under names that no new run has."""
    try:
        packed = json.loads(tags[_tag(VIEW)])["state"].removeprefix("deflate;")
        state = json.loads(zlib.decompress(base64.b64decode(packed)))
        old = any(EARLIER_GROUP in column for column in state["selectedColumns"])
    except (KeyError, TypeError, ValueError, zlib.error):  # deleted, or as another MLflow writes it
        return {}
    return _views() if old else {}


def _views() -> dict[str, str]:
    return {_tag(name): _view(name, order) for name, order in ((VIEW, _BY_QUALITY), (CURVES, _BY_TIME))}


def _tag(view: str) -> str:
    return f"mlflow.sharedViewState.{view}"


def _view(name: str, order: str) -> str:
    """A saved view as MLflow's UI writes it; an MLflow that reads another format shows its own columns and charts."""
    state = {
        "searchFilter": "",
        "orderByKey": order,
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": _COLUMNS,
        "columnOrder": [*_OF_EVERY_VIEW, *_COLUMNS],
        "columnWidths": _OF_EVERY_VIEW | dict.fromkeys(_COLUMNS, _WIDTH),
        "compareRunCharts": [_chart(curves) for curves in _CHARTS],
        "compareRunSections": [{"uuid": _SECTION, "name": _SECTION, "display": True, "isReordered": True}],
        "runsHiddenMode": "FIRST_10_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now = time.time_ns() // 1_000_000
    return json.dumps({"name": name, "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"})


def _chart(curves: Sequence[str]) -> dict[str, Any]:
    """A chart of several curves; MLflow makes its title of their names."""
    return {
        "type": "LINE",
        "uuid": f"{_SECTION}-{curves[0]}",
        "metricSectionId": _SECTION,
        "isGenerated": False,
        "deleted": False,
        "runsCountToCompare": 10,
        "metricKey": curves[0],
        "selectedMetricKeys": curves,
        "lineSmoothness": 0,
        "scaleType": "linear",
        "xAxisScaleType": "linear",
        "range": {},
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "displayPoints": False,
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }
