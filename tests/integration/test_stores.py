"""Stores as people name them: wherever the folder lies, whatever the address holds, whoever else is at the file."""

import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from importlib.util import find_spec
from pathlib import Path

import pytest

from .conftest import TRACEBACK, Project
from .servers import free_port, http_server, mlflow_server

CHAMPION = ("--model", "models:/lenet5-fashionmnist@champion", "docs/img/boot.png")


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith("register.")}  # a stage's output


def one_line(done: subprocess.CompletedProcess[str], command: str) -> str:
    assert done.returncode == 1
    assert TRACEBACK not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith(command)]
    return line


@pytest.mark.parametrize("name", ["what? 100%25 #1", 'it\'s "quoted"; [a] & \\ | * <b> $HOME ~ \n 卷积'])
def test_a_workspace_works_in_a_folder_of_any_name(pipeline_copy: Project, tmp_path: Path, name: str) -> None:
    moved = Project(pipeline_copy.path.rename(tmp_path / name), Path(pipeline_copy.env["FASHION_MNIST_DIR"]))
    before = names_in(tmp_path)
    shutil.rmtree(moved.path / "mlruns")
    (moved.path / "mlflow.db").unlink()
    moved.stage("register")
    assert "Ankle boot" in moved.run("lenet5", "predict", *CHAMPION).stdout
    (run,) = moved.path.glob("mlruns/lenet5-fashionmnist/*/artifacts")
    assert (run / "metrics/evaluation.json").is_file()
    assert names_in(tmp_path) == before


def test_two_workspaces_that_make_one_file_at_once_share_it(pipeline_copy: Project, tmp_path: Path) -> None:
    other = pipeline_copy.copy(tmp_path / "other")
    (tmp_path / "team").mkdir()
    uri = f"sqlite:///{tmp_path / 'team/shared.db'}"
    command = (sys.executable, "stages/register.py")
    with (
        pipeline_copy.started(*command, MLFLOW_TRACKING_URI=uri) as first,
        other.started(*command, MLFLOW_TRACKING_URI=uri) as second,
    ):
        outputs = [process.communicate()[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), outputs
    assert len(pipeline_copy.runs(uri)) == 1  # both hold the same result
    assert list(tmp_path.glob("team/mlruns/lenet5-fashionmnist/*/artifacts/models"))  # beside the file, nobody's own


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("sqlite://", "sqlite:///mlflow.db"),
        ("mysql+pymysql://someone:sez%2Fame@127.0.0.1/mlflow", "`python -m pip install pymysql`"),
        ("./mlruns", "MLFLOW_ALLOW_FILE_STORE=true"),
        ("https://someone:sez/ame@127.0.0.1", "%2F"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_line_from_every_command(finished: Project, uri: str, said: str) -> None:
    env = {"MLFLOW_TRACKING_URI": uri}
    lines = [
        one_line(finished.stage("register", check=False, **env), "register"),
        one_line(finished.run("lenet5", "predict", *CHAMPION, check=False, **env), "lenet5 predict"),
        *(
            line
            for line in finished.run("lenet5", "doctor", check=False, **env).stdout.splitlines()
            if line.split()[:2] == ["problem", "mlflow"]
        ),
    ]
    assert len(lines) >= 3
    for line in lines:
        assert "sez" not in line
        assert said in line or "not looked into" in line


@pytest.mark.skipif(find_spec("boto3") is not None, reason="boto3 is installed here")
def test_artifacts_on_s3_name_the_package_they_need(finished: Project, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 's3.db'}"
    finished.mlflow(uri).create_experiment("lenet5-fashionmnist", artifact_location="s3://bucket/lenet5")
    line = one_line(finished.stage("register", check=False, MLFLOW_TRACKING_URI=uri), "register")
    assert "`python -m pip install boto3`" in line


def test_a_query_of_sqlites_is_honoured(pipeline_copy: Project) -> None:
    pipeline_copy.stage("register", MLFLOW_TRACKING_URI="sqlite:///mine.db?timeout=30")
    assert len(pipeline_copy.runs(f"sqlite:///{pipeline_copy.path / 'mine.db'}")) == 1


def test_an_experiments_name_leads_nowhere(pipeline_copy: Project, tmp_path: Path) -> None:
    name = "../../../outside " + "x" * 300
    before = names_in(tmp_path)
    pipeline_copy.stage("register", MLFLOW_EXPERIMENT_NAME=name)
    assert names_in(tmp_path) == before
    assert pipeline_copy.mlflow().get_experiment_by_name(name)
    assert list(pipeline_copy.path.glob("mlruns/*outside*/*/artifacts/models"))


@pytest.mark.parametrize("secret", ["sez/ame", "sez%2Fame", "sez?am#e", "s@ez:ame"])
def test_no_output_holds_a_password_of_the_address(finished: Project, secret: str) -> None:
    env = {"MLFLOW_TRACKING_URI": f"postgresql://someone:{secret}@127.0.0.1:{free_port()}/mlflow"}
    for command in (("lenet5", "doctor"), ("lenet5", "predict", *CHAMPION)):
        done = finished.run(*command, check=False, **env)
        assert TRACEBACK not in done.stderr
        assert not any(part in done.stdout + done.stderr for part in (secret, "sez", "ame@", "someone"))


SIGN_IN = {"/version": (200, b"<html>Sign in")}
OLD_MLFLOW = {"/version": (200, b"2.22.0")}


@pytest.mark.parametrize(
    ("answers", "otherwise", "said"),
    [(SIGN_IN, (200, b"<html>Sign in"), "MLFLOW_TRACKING_TOKEN"), (OLD_MLFLOW, (404, b""), "needs 3.0 or newer")],
    ids=["a sign-in page", "an old MLflow"],
)
def test_a_server_that_does_not_fit_is_the_same_line_from_every_command(
    finished: Project, answers: dict[str, tuple[int, bytes]], otherwise: tuple[int, bytes], said: str
) -> None:
    asked = set()

    def respond(handler: BaseHTTPRequestHandler) -> None:
        asked.add((handler.command, handler.path))
        status, body = answers.get(handler.path, otherwise)
        handler.send_response(status)
        handler.send_header("Content-Type", "text/html")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    with http_server(respond) as uri:
        env = {"MLFLOW_TRACKING_URI": uri}
        lines = [
            one_line(finished.stage("register", check=False, **env), "register"),
            one_line(finished.run("lenet5", "predict", *CHAMPION, check=False, **env), "lenet5 predict"),
            one_line(finished.run("lenet5", "compare", "champion", "workspace", check=False, **env), "lenet5 compare"),
            next(
                line
                for line in finished.run("lenet5", "doctor", check=False, **env).stdout.splitlines()
                if line.startswith("problem mlflow")
            ),
        ]
    assert len({line[line.index("127.0.0.1") :].replace(": ", " ") for line in lines}) == 1, lines
    assert said in lines[0]
    assert all(path == "/version" or "search" in path for _, path in asked)  # nothing was written


def test_a_server_on_the_way_to_which_a_password_is_given_is_not_shown_with_it(
    pipeline_copy: Project, tmp_path: Path
) -> None:
    with mlflow_server(pipeline_copy, tmp_path / "server", free_port()) as uri:
        env = {"MLFLOW_TRACKING_URI": uri.replace("http://", "http://someone:sez%2Fame@")}
        registered = pipeline_copy.run("python", "stages/register.py", **env)
        looked = pipeline_copy.run("lenet5", "doctor", check=False, **env)
        assert len(pipeline_copy.runs(uri)) == 1
    assert "ok      mlflow    http://127.0.0.1" in looked.stdout
    for done in (registered, looked):
        assert "sez" not in done.stdout + done.stderr
    for path in pipeline_copy.path.rglob("*.json"):
        assert b"sez" not in path.read_bytes()
