import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from lenet5.errors import UserError, without_credentials
from lenet5.record.addresses import (
    shown,
    sqlite_file,
    sqlite_uri,
    store_uri,
    without_secrets,
)

URI = "MLFLOW_TRACKING_URI"
RESERVED = ":/?#[]@!$&'()*+,;=%\\ \"<>^`{|}~"
EVERY_CHARACTER = "".join(map(chr, range(1, 128))).replace("/", "") + "卷积"


@pytest.fixture(autouse=True)
def _no_secrets_of_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (URI, "MLFLOW_ALLOW_FILE_STORE", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("", "sqlite:////project/mlflow.db"),
        ("sqlite:///mine.db", "sqlite:////project/mine.db"),  # a queued experiment's own folder is deleted
        ("sqlite:////srv/team.db", "sqlite:////srv/team.db"),
        ("sqlite:///mine.db?timeout=30", "sqlite:////project/mine.db?timeout=30"),
        ("sqlite:////srv/what%3F.db", "sqlite+pysqlite:////srv/what%3F.db"),
        (" sqlite:///mine.db\n", "sqlite:////project/mine.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://user:p%2Fw@example.org/at/home", "https://user:p%2Fw@example.org/at/home"),
        ("postgresql://server/mlflow", "postgresql://server/mlflow"),
        ("postgresql://user:p/w?#@server/mlflow", "postgresql://user:p/w?#@server/mlflow"),
        ("databricks", "databricks"),
    ],
)
def test_every_experiment_finds_the_same_record(monkeypatch: pytest.MonkeyPatch, uri: str, found: str) -> None:
    monkeypatch.setenv("DVC_ROOT", "/project")
    monkeypatch.setenv(URI, uri)
    assert store_uri() == found


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        (" ", "is blank; unset it"),
        ("./mlruns", "./mlruns is a folder"),
        ("file:///srv/mlruns", "unset it to use mlflow.db"),
        ("file:mlruns", "begin it with sqlite:///"),
        ("mlflow.db", "mlflow.db is a folder"),
        ("someone:sezame@example.org:5000", ": example.org:5000 is a folder"),
        ("sqlite://", "write sqlite:///mlflow.db"),
        ("sqlite:///", "write sqlite:///mlflow.db"),
        ("sqlite:///:memory:", "write sqlite:///mlflow.db"),
        ("sqlite:///file:mlflow.db?uri=true", "write sqlite:///mlflow.db"),
        ("https://someone:sez/ame@example.org", "%2F"),
        ("https://someone:sez?ame@example.org", "MLFLOW_TRACKING_PASSWORD"),
        ("http://someone:sez[ame@example.org", "%5B"),
        ("http://example.org:port", "https://host:port"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_before_it_is(
    monkeypatch: pytest.MonkeyPatch, uri: str, said: str
) -> None:
    monkeypatch.setenv(URI, uri)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI") as raised:
        store_uri()
    assert said in str(raised.value)
    assert "sez" not in str(raised.value)


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("./mlruns", "file:///project/mlruns"),
        ("file:my%20runs", "file:///project/my%20runs"),
        ("file:///srv/what%3F", "file:///srv/what%3F"),
        ("file://localhost/srv/runs", "file:///srv/runs"),
    ],
)
def test_a_folder_is_taken_where_mlflow_is_told_to(monkeypatch: pytest.MonkeyPatch, uri: str, found: str) -> None:
    monkeypatch.setenv("DVC_ROOT", "/project")
    monkeypatch.setenv(URI, uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert store_uri() == found


@pytest.mark.parametrize("name", [EVERY_CHARACTER, "what?", "100%25", "%", "a#b", "..."], ids=ascii)
def test_the_file_of_an_address_is_the_one_that_is_opened(tmp_path: Path, name: str) -> None:
    file = tmp_path / name / "mlflow.db"
    file.parent.mkdir()
    uri = sqlite_uri(file)
    assert sqlite_file(uri) == file
    engine = create_engine(uri)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE here (a)"))
    engine.dispose()
    with closing(sqlite3.connect(file)) as record:
        assert record.execute("SELECT name FROM sqlite_master").fetchall() == [("here",)]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_no_other_address_has_a_file() -> None:
    assert sqlite_file("http://example.org/mlflow.db") is None


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("https://user:token@example.org/a/b.git", "https://example.org/a/b.git"),
        ("https://token@example.org:8080/a", "https://example.org:8080/a"),
        ("https://user:t@ken@example.org/a", "https://example.org/a"),
        ("postgresql://user:secret@example.org:5432/db", "postgresql://example.org:5432/db"),
        ("https://user:123/secret@example.org/a", "https://example.org/a"),
        ("postgresql://example.org/db?user=u&password=secret", "postgresql://example.org/db"),
        ("https://example.org/a#access_token=secret", "https://example.org/a"),
        *((f"https://user:sec{mark}ret@example.org/a", "https://example.org/a") for mark in RESERVED),
        *((f"https://sec{mark}ret@example.org/a", "https://example.org/a") for mark in RESERVED),
        *((f"postgresql://user:sec{mark}ret@example.org/db", "postgresql://example.org/db") for mark in RESERVED),
        ("user:secret@example.org:5000", "example.org:5000"),
        ("https:/user:sec/ret@example.org", "example.org"),
        ("ssh://git@example.org/a/b.git", "ssh://git@example.org/a/b.git"),
        ("ssh://git:secret@example.org/a", "ssh://git@example.org/a"),
        ("git@example.org:a/b.git", "git@example.org:a/b.git"),
        ("/home/a@b/c", "/home/a@b/c"),
        ("file:///srv/a", "file:///srv/a"),
        ("C:\\srv\\a", "C:\\srv\\a"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("https://[example.org/a", "https://[example.org/a"),
        ("", ""),
    ],
)
def test_no_secret_of_a_url_is_recorded(url: str, clean: str) -> None:
    assert without_credentials(url) == clean


def test_a_store_without_a_scheme_is_shown_without_its_token() -> None:
    assert shown("token/of@mine@example.org:5000") == "example.org:5000"


def test_an_address_in_a_message_loses_its_secrets() -> None:
    said = "API request to https://user:p/a@ss@example.org/api failed (postgresql://u:p@host/db)"
    assert without_secrets(said) == "API request to https://example.org/api failed (postgresql://host/db)"


@pytest.mark.parametrize("mark", RESERVED)
@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"])
def test_a_secret_of_the_environment_is_in_no_message(
    monkeypatch: pytest.MonkeyPatch, mark: str, variable: str
) -> None:
    secret = f"open{mark}sesame"
    monkeypatch.setenv(URI, f"postgresql://user:{secret}@example.org/db")
    assert "sesame" not in without_secrets(f"cannot log in as user with '{secret}'")
    monkeypatch.setenv(URI, "http://example.org")
    monkeypatch.setenv(variable, secret)
    assert without_secrets(f"{secret} was refused") == "*** was refused"
