"""What the experiment's page in MLflow's UI shows without anyone configuring it."""

import base64
import json
import time
import zlib

VIEW = "comparison"
"""The saved view with what people compare, in the menu Views above the table of runs."""

_METRICS = (
    "final/test_accuracy",
    "final/validation_accuracy",
    "final/gap_accuracy",
    "final/test_loss",
    "final/gap_loss",
    "best/epoch",
)
_PARAMS = (
    "model.activation",
    "model.pooling",
    "train.optimizer",
    "train.lr",
    "train.schedule",
    "train.augmentation.shift",
    "train.epochs",
    "train.seed",
)


def experiment_tags() -> dict[str, str]:
    """The tags of a new experiment: its kind, its description, and the view that compares runs."""
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": (
            "LeNet-5 on FashionMNIST, one run a result. "
            f"The view `{VIEW}` (menu Views) shows accuracy, overfitting gap and the recipe of each."
        ),
        f"mlflow.sharedViewState.{VIEW}": _view(),
    }


def _view() -> str:
    """A saved view as MLflow's UI writes it; an MLflow that reads another format shows its own default columns."""
    columns = [f"metrics.`{name}`" for name in _METRICS] + [f"params.`{name}`" for name in _PARAMS]
    state = {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "FIRST_10_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now = time.time_ns() // 1_000_000
    return json.dumps({"name": VIEW, "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"})
