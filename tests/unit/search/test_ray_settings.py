import socket
import stat
from pathlib import Path

import pytest

from lenet5.errors import UserError
from lenet5.search import ray_settings


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_token_is_made_once_and_for_its_owner_alone(home: Path) -> None:
    with pytest.raises(UserError, match="no token here; copy that of the cluster's head"):
        ray_settings.require_token()
    ray_settings.make_token()
    path = home / ".ray/auth_token"
    made = path.read_text()
    assert len(made) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    ray_settings.require_token()
    ray_settings.make_token()
    assert path.read_text() == made
    path.chmod(0o640)
    with pytest.raises(UserError, match="others can read the token; chmod 600"):
        ray_settings.require_token()


def test_a_token_that_a_person_has_set_is_the_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a person's own")
    ray_settings.make_token()
    ray_settings.require_token()
    assert list(home.iterdir()) == []


def test_every_process_asks_for_a_token_and_reports_to_nobody() -> None:
    settings = ray_settings.environment()
    assert settings["RAY_AUTH_MODE"] == "token"
    assert settings["RAY_USAGE_STATS_ENABLED"] == "0"
    assert settings["RAY_USAGE_STATS_REPORT_URL"].startswith("http://127.0.0.1:")


@pytest.mark.parametrize("own", [{}, {"http_proxy": "http://proxy:3128", "NO_PROXY": "localhost"}], ids=str)
def test_rays_processes_have_no_way_out_and_workers_have_a_persons_own(own: dict[str, str]) -> None:
    environment = own | {"PATH": "/bin"} | ray_settings.server_environment(own)
    assert {environment[name] for name in ("http_proxy", "https_proxy", "HTTP_PROXY")} == {"http://127.0.0.1:9/"}
    assert environment["no_proxy"] == environment["NO_PROXY"] == ""
    ray_settings.reach_out_again(environment)
    ray_settings.reach_out_again(environment)
    assert environment == own | {"PATH": "/bin", "RAY_worker_niceness": "0"}


def test_workers_step_back_for_other_programs_only_where_a_person_wants_it() -> None:
    assert ray_settings.server_environment({"RAY_worker_niceness": "15"})["RAY_worker_niceness"] == "15"


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1", ("127.0.0.1", 6379)), ("127.0.0.1:7000", ("127.0.0.1", 7000)), ("localhost:1", ("127.0.0.1", 1))],
)
def test_an_address_may_come_with_a_port(address: str, expected: tuple[str, int]) -> None:
    assert ray_settings.host_and_port(address) == expected


@pytest.mark.parametrize(
    "address", ["", ":6379", "host:port", "host:70000", "host:-1", "host:0", "h:²", "10.0.0..5", "ray://host:1"]
)
def test_what_is_no_address_is_told(address: str) -> None:
    with pytest.raises(UserError, match="not HOST:PORT"):
        ray_settings.host_and_port(address)


def test_the_own_address_is_the_one_on_the_way_there() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        assert ray_settings.own_address("127.0.0.1", port) == "127.0.0.1"
    with pytest.raises(OSError, match="refused"):
        ray_settings.own_address("127.0.0.1", port)


VERSIONS = """Version mismatch: The cluster was started with:
    Ray: 2.60.0
    Python: 3.12.1
This process on node 10.0.0.6:0 was started with:
    Ray: 2.59.0
    Python: 3.11.7
"""


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (VERSIONS, "it runs Ray 2.60.0 on Python 3.12.1, and here is Ray 2.59.0 on Python 3.11.7; install the same"),
        ("RPC error: InvalidAuthToken: Authentication token is missing", "the token is not the cluster's"),
        ("No node info found matching attributes: '10.77.0.3'", "run `lenet5 cluster join HOST:1` first"),
        ("Failed to connect to GCS\nTimedOut: waiting", "it does not answer"),
        ("a\n  the last word \n\n", "the last word"),
        ("", "Ray does not say why"),
    ],
)
def test_what_ray_says_becomes_what_to_do(said: str, told: str) -> None:
    line = ray_settings.advice(said, "HOST:1")
    assert told in line
    assert "\n" not in line
