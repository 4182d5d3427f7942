"""Params of the tests' own: a person may set anything in params.yaml, and the tests must still pass."""

from typing import Any

from lenet5.params import Params, set_values

CONTENT: dict[str, Any] = {
    "download": {"sources": ["https://example.org/data/"], "local_dir": None, "timeout": 10},
    "kernel_check": {"seeds": [0, 1], "lr": 0.03, "max_steps": 1000, "tolerance": 1e-3},
    "data": {"validation_size": 10, "train_sample": 10, "split_seed": 0},
    "model": {"activation": "relu", "pooling": "avg", "c3": "full", "dropout": 0.0},
    "train": {
        "epochs": 3,
        "batch_size": 10,
        "optimizer": "sgd",
        "lr": 0.1,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "schedule": "constant",
        "label_smoothing": 0.0,
        "loss_q": 0.0,
        "augmentation": {"horizontal_flip": False, "shift": 0, "erasing": 0.0, "cutmix": 0.0},
        "patience": 0,
        "weights": "best_validation",
        "seed": 0,
        "deterministic": True,
        "device": "cpu",
        "engine": "eager",
        "precision": "fp32",
    },
    "evaluate": {"confidence": 0.95, "calibration_bins": 15},
    "export": {"opset": 20, "tolerance": 1e-4},
    "register": {
        "experiment": "an-experiment",
        "model_name": "a-model",
        "min_test_accuracy": 0.5,
        "max_accuracy_gap": 0.05,
        "alpha": 0.05,
        "system_metrics": False,
    },
}


def changed(content: dict[str, Any], **changes: Any) -> Params:
    """The params of ``content`` with some set: ``train__epochs=5``."""
    set_values(content, {name.replace("__", "."): value for name, value in changes.items()})
    return Params.model_validate(content)
