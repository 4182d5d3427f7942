"""What a person can get wrong, and the world can do to a stage: each row runs the real stage."""

import gzip
import hashlib
import http.server
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lenet5.data.fashion_mnist import RAW_DIR, SHA256, is_verified

from .conftest import Project
from .servers import answer, http_server

Respond = Callable[[http.server.BaseHTTPRequestHandler, bytes], None]


def outs(project: Project) -> dict[str, str]:
    """A digest of everything the stages left."""
    return {
        str(path.relative_to(project.path)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in ("data", "models", "plots", "metrics")
        for path in sorted((project.path / folder).rglob("*"))
        if path.is_file()
    }


def one_line(done: subprocess.CompletedProcess[str], stage: str) -> str:
    """The message of a stage that refused: one line, no traceback, exit status 1."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith(f"{stage}: ")]
    return line


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("lr: 0.002", "learning_rate: 0.002", ["train.learning_rate", "0.002", "valid here"]),
        ("epochs: 2", "epoch: 2", ["train.epoch", "did you mean train.epochs"]),
        ("epochs: 2", "epochs: two", ["train.epochs", "'two'", "integer"]),
        ("epochs: 2", "epochs: 0", ["train.epochs", "0", "greater than or equal to 1"]),
        ("optimizer: adamw", "optimizer: adam", ["train.optimizer", "'adam'", "'sgd' or 'adamw'"]),
        ("export:", "exports:", ["exports", "did you mean export"]),
        ("epochs: 2", "epochs: [2", ["not valid YAML", "line"]),
    ],
)
def test_bad_params_are_one_message_that_names_key_value_and_what_is_allowed(
    project: Project, old: str, new: str, said: list[str]
) -> None:
    file = project.path / "params.yaml"
    file.write_text(file.read_text().replace(old, new, 1))
    line = one_line(project.stage("download", check=False), "download")
    assert all(part in line for part in said), line
    assert not (project.path / "data").exists()


def test_bad_params_stop_every_stage_and_touch_nothing(pipeline_copy: Project) -> None:
    before = outs(pipeline_copy)
    pipeline_copy.edit({"train.lr": -1})
    for stage in ("kernel_check", "train", "evaluate", "export", "register"):
        assert "train.lr: -1 is not allowed" in one_line(pipeline_copy.stage(stage, check=False), stage)
    assert pipeline_copy.run("dvc", "repro", check=False).returncode != 0
    assert outs(pipeline_copy) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_a_gpu_says_what_to_set_instead(project: Project) -> None:
    project.edit({"train.device": "cuda"})
    line = one_line(project.stage("train", check=False), "train")
    assert "no CUDA device" in line
    assert "auto or cpu" in line


def test_a_diverging_training_stops_and_leaves_the_earlier_model(pipeline_copy: Project) -> None:
    before = outs(pipeline_copy)
    pipeline_copy.edit({"train.optimizer": "sgd", "train.lr": 1e30})
    line = one_line(pipeline_copy.stage("train", check=False), "train")
    assert "epoch 1, step" in line
    assert "learning rate 1e+30" in line
    assert outs(pipeline_copy) == before
    done = pipeline_copy.run("dvc", "repro", check=False)  # DVC deletes train's outs before it runs train
    assert done.returncode != 0
    assert outs(pipeline_copy) == before
    finished, failed = pipeline_copy.runs()  # the same training twice is one run
    assert (finished.info.status, failed.info.status) == ("FINISHED", "FAILED")
    assert "learning rate 1e+30" in failed.data.tags["failure"]


def test_an_unrecovered_kernel_fails_its_stage_and_train_does_not_start(project: Project) -> None:
    project.edit({"kernel_check.max_steps": 3})
    done = project.run("dvc", "repro", check=False)
    assert done.returncode != 0
    assert "raise kernel_check.max_steps" in done.stderr
    assert "Running stage 'train'" not in done.stdout


def test_damaged_weights_are_refused_by_evaluate_and_export(pipeline_copy: Project) -> None:
    weights = pipeline_copy.path / "models/lenet5.pth"
    weights.write_bytes(weights.read_bytes()[:1000])
    for stage in ("evaluate", "export"):
        assert "SHA-256 differs" in one_line(pipeline_copy.stage(stage, check=False), stage)


@pytest.mark.parametrize(
    ("name", "stages"),
    [("train-labels-idx1-ubyte", ["train"]), ("t10k-images-idx3-ubyte", ["train", "evaluate", "export"])],
)
def test_a_byte_changed_in_the_data_is_found_before_it_is_used(
    pipeline_copy: Project, name: str, stages: list[str]
) -> None:
    file = pipeline_copy.path / RAW_DIR / name
    content = bytearray(file.read_bytes())
    content[5000] ^= 1
    file.unlink()  # it may be a link into DVC's cache
    file.write_bytes(content)
    before = outs(pipeline_copy)
    for stage in stages:
        assert "SHA-256 differs" in one_line(pipeline_copy.stage(stage, check=False), stage)
    assert outs(pipeline_copy) == before


def test_a_model_that_disagrees_with_pytorch_is_not_exported(pipeline_copy: Project) -> None:
    before = outs(pipeline_copy)
    pipeline_copy.edit({"export.tolerance": 1e-12})
    assert "a logit differs by" in one_line(pipeline_copy.stage("export", check=False), "export")
    assert outs(pipeline_copy) == before


@contextmanager
def source(respond: Respond, data: Path) -> Iterator[str]:
    """A web server with the four files; ``respond`` gets each request with the right answer's bytes."""
    packed = {f"/{name}.gz": gzip.compress((data / name).read_bytes(), compresslevel=1) for name in SHA256}
    with http_server(lambda handler: respond(handler, packed[handler.path])) as url:
        yield url


def right(handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
    answer(handler, 200, body)


def wrong_bytes(handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
    content = bytearray(gzip.decompress(body))
    content[100] ^= 1
    answer(handler, 200, gzip.compress(content, compresslevel=1))


def cut_connection(handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
    answer(handler, 200, body[:1000], len(body))


def cut_file(handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
    answer(handler, 200, body[:1000])


def not_gzip(handler: http.server.BaseHTTPRequestHandler, _: bytes) -> None:
    answer(handler, 200, b"<html>please log in</html>")


def missing(handler: http.server.BaseHTTPRequestHandler, _: bytes) -> None:
    answer(handler, 404, b"")


def failing(handler: http.server.BaseHTTPRequestHandler, _: bytes) -> None:
    answer(handler, 503, b"")


def silent(_: http.server.BaseHTTPRequestHandler, __: bytes) -> None:
    time.sleep(3)


def without_own_copy(project: Project) -> Project:
    del project.env["FASHION_MNIST_DIR"]
    return project


@pytest.mark.parametrize(
    ("respond", "reason"),
    [
        (wrong_bytes, "SHA-256 differs"),
        (cut_connection, "broke off"),
        (cut_file, "cut or damaged"),
        (not_gzip, "cut or damaged"),
        (missing, "answered 404"),
        (failing, "answered 503"),
        (silent, "silent for 1 s"),
    ],
)
def test_a_bad_source_is_refused_and_the_next_one_tried(
    project: Project, data: Path, respond: Respond, reason: str
) -> None:
    with source(respond, data) as bad, source(right, data) as good:
        project.edit({"download.sources": [bad, good], "download.timeout": 1 if respond is silent else 30})
        shown = without_own_copy(project).stage("download").stdout
    assert f"{bad}: " in shown
    assert reason in shown
    assert f"{good}: 4 files, verified" in shown
    assert all(is_verified(project.path / RAW_DIR / name) for name in SHA256)


def test_no_reachable_source_names_each_reason_and_the_way_by_hand(project: Project, data: Path) -> None:
    with source(missing, data) as bad:
        project.edit({"download.sources": ["http://127.0.0.1:9/", bad, "debian"], "download.local_dir": "nowhere"})
        project.env["PATH"] = str(Path(project.run("which", "python").stdout).parent)  # without apt-get
        line = one_line(without_own_copy(project).stage("download", check=False), "download")
    for part in (
        "127.0.0.1:9/: cannot be reached",
        "answered 404",
        "has no apt-get",
        "nowhere: holds neither",
        "FASHION_MNIST_DIR",
    ):
        assert part in line
    assert not list((project.path / "data").rglob("*ubyte*"))


def test_files_that_are_right_are_not_fetched_again(project: Project, data: Path) -> None:
    asked: list[str] = []

    def counting(handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        asked.append(handler.path)
        right(handler, body)

    project.link_data()
    (project.path / RAW_DIR / "t10k-labels-idx1-ubyte").write_bytes(b"damaged")
    with source(counting, data) as url:
        project.edit({"download.sources": [url]})
        without_own_copy(project).stage("download")
    assert asked == ["/t10k-labels-idx1-ubyte.gz"]


def test_a_folder_of_packed_files_serves_as_own_copy(project: Project, data: Path, tmp_path: Path) -> None:
    for name in SHA256:
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((data / name).read_bytes(), compresslevel=1))
    project.edit({"download.local_dir": str(tmp_path), "download.sources": ["http://127.0.0.1:9/"]})
    assert f"{tmp_path}: 4 files, verified" in without_own_copy(project).stage("download").stdout
