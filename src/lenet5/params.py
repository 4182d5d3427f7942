"""``params.yaml`` as one strict, typed, read-only object.

The file is the only place that holds values: nothing here has a default, so what a run used is what the file
says. ``python -m lenet5.params`` prints the JSON schema that editors check the file against.
"""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from lenet5.errors import UserError, shown

TRAINING_IMAGES = 60_000

Fraction = Annotated[float, Field(ge=0, le=1)]
LARGEST_SEED = 2**31 - 1
Seed = Annotated[int, Field(ge=0, lt=LARGEST_SEED + 1)]
Batch = Annotated[int, Field(ge=1, le=TRAINING_IMAGES)]
Source = Annotated[
    str, Field(pattern=r"^(https?://.+|torchvision|debian)$", description="an http(s) URL, torchvision or debian")
]


ONE_OF = "one of: "
"""How the tag of one of several kinds of value begins; no part of what a person wrote."""

M = TypeVar("M", bound=BaseModel)


class Section(BaseModel):
    """What every section shares: unknown keys, wrong types, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class DownloadParams(Section):
    """Where FashionMNIST comes from."""

    sources: list[Source] = Field(min_length=1, description="Tried in this order until one gives the right bytes.")
    local_dir: str | None = Field(description="A folder that holds the four IDX files, plain or .gz; tried first.")
    timeout: float = Field(gt=0, le=3600, description="Seconds a server may stay silent.")


class KernelCheckParams(Section):
    """Learning the edge kernel [1, -1] and its transpose, each from its response."""

    seeds: list[Seed] = Field(min_length=1, description="One training of each kernel.")
    lr: float = Field(gt=0, description="Learning rate.")
    max_steps: int = Field(ge=1, le=1_000_000, description="Gradient steps at most.")
    tolerance: float = Field(
        ge=1e-12, le=1, description="Largest distance of a learned weight from 1 and -1; below 1e-12, rounding decides."
    )


class DataParams(Section):
    """How the 60,000 training images are used."""

    validation_size: int = Field(ge=0, lt=TRAINING_IMAGES, description="Images held out; 0: train on all.")
    train_sample: Batch = Field(description="Training images on which loss and accuracy are measured.")
    split_seed: Seed = Field(description="Decides which images are held out.")


class ModelParams(Section):
    """The network; 61,706 parameters with the full C3."""

    activation: Literal["sigmoid", "tanh", "relu", "leaky_relu"] = Field(
        description="leaky_relu: a ReLU that lets a hundredth of what is below 0 through; no unit dies of it."
    )
    pooling: Literal["avg", "max"]
    c3: Literal["full", "paper"] = Field(description="paper: the connection table of 1998, Table I.")
    dropout: float = Field(ge=0, lt=1, description="Probability, after C5 and F6.")


class AugmentationParams(Section):
    """Random changes to each training image, fresh every epoch."""

    horizontal_flip: bool = Field(description="Mirror each image with probability 1/2.")
    shift: int = Field(ge=0, le=14, description="Move each image by up to this many pixels, each way.")
    erasing: Fraction = Field(description="Blacken a random rectangle of each image with this probability.")
    cutmix: Fraction = Field(
        description="Paste a random rectangle of another image with this probability; its label counts by its share."
    )

    def changes(self) -> bool:
        """Whether any image is changed."""
        return self.horizontal_flip or self.shift > 0 or self.erasing > 0 or self.cutmix > 0


class TrainParams(Section):
    """The recipe."""

    epochs: int = Field(ge=1, le=1_000_000)
    batch_size: Batch
    optimizer: Literal["sgd", "adamw"]
    lr: float = Field(gt=0, description="Learning rate; the peak one for cosine and onecycle.")
    momentum: float = Field(ge=0, lt=1, description="Of sgd; adamw has its own.")
    weight_decay: float = Field(ge=0)
    schedule: Literal["constant", "cosine", "onecycle"]
    label_smoothing: float = Field(ge=0, lt=1)
    loss_q: Fraction = Field(
        description="Of the generalised cross-entropy, (1 - p^q) / q of a label's p; 0: cross-entropy, 1: 1 - p."
    )
    augmentation: AugmentationParams
    patience: int = Field(ge=0, description="Stop after so many epochs without a better validation loss; 0: never.")
    weights: Literal["best_validation", "last"] = Field(
        description="Which epoch's weights are kept; without validation images it is the last."
    )
    seed: Seed
    deterministic: bool = Field(description="Refuse operations whose result may differ between two runs.")
    device: Literal["auto", "cpu", "cuda"]
    engine: Literal["auto", "eager", "lanes", "compiled", "graph"] = Field(
        description="How the steps run; the arithmetic is the same. lanes is for CPUs, compiled and graph are for CUDA."
    )
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        description="Of products and convolutions while training. tf32 is for CUDA."
    )


class EvaluateParams(Section):
    """Figures of the finished model."""

    confidence: float = Field(gt=0, lt=1, description="Of the intervals around losses and accuracies.")
    calibration_bins: int = Field(ge=1, le=1000)


class ExportParams(Section):
    """ONNX and torch.export."""

    opset: int = Field(ge=18, le=24, description="ONNX operator set.")
    tolerance: float = Field(gt=0, le=1, description="Largest difference of any logit from PyTorch's.")


class RegisterParams(Section):
    """The MLflow record."""

    experiment: str = Field(min_length=1, pattern=r"\S", description="MLFLOW_EXPERIMENT_NAME, if set, wins.")
    # What ends a name in models:/NAME@ALIAS would be accepted by MLflow, and the model never found again.
    model_name: str = Field(
        min_length=1,
        max_length=256,
        pattern=r"^[^/:'@?.\x00-\x20\x7f][^/:'@?\x00-\x1f\x7f]*$",
        description="The registered model; none of / : ' @ ? in it, and no . or blank before it.",
    )
    min_test_accuracy: Fraction = Field(description="A model below it gets no version of the registered model.")
    max_accuracy_gap: Fraction = Field(description="Nor does one whose accuracy falls further from training images.")
    alpha: float = Field(gt=0, lt=1, description="p-value at which a better model replaces the champion.")
    system_metrics: bool = Field(description="Log CPU, memory and GPU use while training.")


class Params(Section):
    """All of ``params.yaml``."""

    download: DownloadParams
    kernel_check: KernelCheckParams
    data: DataParams
    model: ModelParams
    train: TrainParams
    evaluate: EvaluateParams
    export: ExportParams
    register_: RegisterParams = Field(alias="register")

    @model_validator(mode="after")
    def _momentum_is_for_sgd(self) -> Self:
        if self.train.momentum and self.train.optimizer == "adamw":
            raise ValueError("train.momentum is for sgd: set it to 0, or train.optimizer to sgd")
        return self

    @model_validator(mode="after")
    def _patience_needs_validation_images(self) -> Self:
        if self.train.patience and not self.data.validation_size:
            raise ValueError(
                "train.patience watches the validation loss, and data.validation_size is 0: "
                "set train.patience to 0 or hold images out"
            )
        return self


def load_params(path: Path) -> Params:
    """Read and check ``path``. Raises UserError with every mistake in one line."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run from the folder that holds dvc.yaml") from None
    return check_params(parse_yaml(text, path), path)


def parse_yaml(text: bytes, path: Path) -> dict[str, Any]:
    """The mapping that ``text``, the content of ``path``, holds. Raises UserError where it is none, or no YAML."""
    from lenet5.dialect import parse  # late: a machine that only measures has no YAML

    content = parse(text, path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold the sections {', '.join(_keys(Params))}, not {shown(content)}")
    return content


def check_params(content: dict[str, Any], path: Path) -> Params:
    """The params that ``content``, read from ``path``, gives. Raises UserError with every mistake in one line."""
    return check(Params, content, path)


def check(model: type[M], content: object, path: Path) -> M:
    """The ``model`` that ``content``, read from ``path``, gives. Raises UserError with every mistake in one line."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        mistakes = "; ".join(_explain(details, model) for details in error.errors())
        raise UserError(f"{path}: {mistakes}") from None


def flat_params(params: Params, *sections: str) -> dict[str, str]:
    """The params of ``sections`` as MLflow shows them: ``train.lr`` -> ``0.9``."""
    return {key: str(value) for key, value in param_values(params, *sections).items()}


def param_values(params: Params, *sections: str) -> dict[str, Any]:
    """The params of ``sections`` by their dotted names."""
    content = params.model_dump(by_alias=True)
    return {key: value for name in sections for key, value in _flatten(name, content[name])}


def with_values(params: Params, values: Mapping[str, Any]) -> dict[str, Any]:
    """The content of ``params``, not checked, with ``values`` by dotted names; each must be a param that there is."""
    content = params.model_dump(by_alias=True)
    set_values(content, values)
    return content


def set_values(content: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Set ``values`` by dotted names in ``content``, which has their sections."""
    for name, value in values.items():
        *sections, key = name.split(".")
        place = content
        for section in sections:
            place = place[section]
        place[key] = value


def _keys(section: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in section.model_fields.items()]


def _sections(section: type[BaseModel], prefix: str = "") -> dict[str, type[BaseModel]]:
    """Every section by its dotted name; the whole file is ``""``."""
    found = {prefix: section}
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= _sections(field.annotation, f"{prefix}.{field.alias or name}".lstrip("."))
    return found


def _explain(details: ErrorDetails, model: type[BaseModel]) -> str:
    """One mistake: the key, its value, what is allowed and, for an unknown key, the closest valid one."""
    names = [str(part) for part in details["loc"] if not str(part).startswith(ONE_OF)]
    where = ".".join(names)
    if details["type"] == "extra_forbidden":
        *section, key = names
        return f"{where}: unknown key (value {shown(details['input'])}); {suggestion(model, '.'.join(section), key)}"
    if details["type"] == "missing":
        return f"{where}: missing; put it {'back (`git diff` shows what it was)' if model is Params else 'there'}"
    wants_keys = details["type"] == "model_type"
    allowed = "it takes keys with values" if wants_keys else details["msg"].removeprefix("Value error, ")
    if not where:
        return allowed
    return f"{where}: {shown(details['input'])} is not allowed: {allowed[0].lower()}{allowed[1:]}"


def suggestion(model: type[BaseModel], section_name: str, key: str) -> str:
    """What a person may have meant by ``key``, which ``model`` does not have, and what there is in its section."""
    sections = _sections(model)
    if section_name not in sections:
        return "take it out"
    siblings = _keys(sections[section_name])
    everywhere = {f"{name}.{key}".lstrip("."): key for name, section in sections.items() for key in _keys(section)}
    close = difflib.get_close_matches(key, siblings, n=1) or [
        name for name, last in everywhere.items() if difflib.get_close_matches(key, [last], cutoff=0.8)
    ]
    prefix = f"{section_name}." if section_name and close and close[0] in siblings else ""
    hint = f"did you mean {prefix}{' or '.join(close)}? " if close else ""
    return f"{hint}valid here: {', '.join(siblings)}"


def _flatten(prefix: str, value: object) -> list[tuple[str, object]]:
    if not isinstance(value, Mapping):
        return [(prefix, value)]
    return [pair for key, inner in value.items() for pair in _flatten(f"{prefix}.{key}", inner)]


if __name__ == "__main__":
    print(json.dumps(Params.model_json_schema(), indent=2))
