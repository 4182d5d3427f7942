from pathlib import Path

import pytest

from lenet5.errors import UserError
from lenet5.files import digest
from lenet5.training.checkpoint import code_digests

PIPELINE = Path("dvc.yaml")
DEPS = "stages:\n  train:\n    deps:\n      - data/raw\n      - src/one.py\n      - stages/two.py\n"


@pytest.fixture(autouse=True)
def _code(workspace: Path) -> None:
    for name in ("src/one.py", "stages/two.py"):
        file = workspace / name
        file.parent.mkdir()
        file.write_text(name)


def test_the_code_that_decides_is_among_the_deps_of_train() -> None:
    PIPELINE.write_text(DEPS)
    assert code_digests(PIPELINE) == {name: digest(name.encode()) for name in ("src/one.py", "stages/two.py")}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (DEPS.replace("  train", "\ttrain"), r"dvc\.yaml: not valid YAML in line 2, column 1: .*'\\t'"),
        ("stages: \xff", r"dvc\.yaml: not valid YAML: .*save it as that"),
        (DEPS.replace("train", "fit"), r"dvc\.yaml: no stage train with a list of deps; `git restore dvc\.yaml`"),
        (DEPS.replace("deps", "outs"), r"dvc\.yaml: no stage train with a list of deps"),
        ("", r"dvc\.yaml: no stage train with a list of deps"),
        (DEPS.replace("data/raw", "[3]"), r"dvc\.yaml: no stage train with a list of deps"),
        (DEPS.replace("one", "gone"), r"src/gone\.py: not found.*; `git restore src/gone\.py`, or mend .* dvc\.yaml"),
        (None, r"dvc\.yaml: not found.*; `git restore dvc\.yaml`"),
    ],
    ids=["tab", "not UTF-8", "no train", "no deps", "empty", "no name", "dep gone", "gone"],
)
def test_a_pipeline_that_does_not_tell_what_decides_is_refused_in_a_line(content: str | None, said: str) -> None:
    if content is not None:
        PIPELINE.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=f"^{said}") as refused:
        code_digests(PIPELINE)
    assert "\n" not in str(refused.value)
