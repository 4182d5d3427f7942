"""What may be wrong with the record: asked of files and of the server, without MLflow, which may be what is broken."""

import os
import re
import shlex
import sqlite3
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

from lenet5.errors import UserError
from lenet5.findings import Finding, call, few, installed
from lenet5.record.addresses import shown, sqlite_file, store_uri
from lenet5.record.attempt import cut_short, names_of_attempts
from lenet5.record.moved import earlier_folder, here, path_of
from lenet5.workspace import ATTEMPTS, CHECKPOINTS, main_workspace

_PATIENCE = 5  # seconds, for who is writing


def check_store() -> Iterator[Finding]:
    """The MLflow record, and whether the installed MLflow can use it."""
    try:
        uri = store_uri()
    except UserError as error:
        yield Finding("problem", "mlflow", str(error))
        return
    file = sqlite_file(uri)
    yield _database(uri, file) if file else _asked(shown(uri))


def check_stray_stores() -> Iterator[Finding]:
    """Records beside the record: MLflow refuses the one kind, and nobody finds the runs in the other."""
    root = main_workspace()
    old = sorted(path.parent for path in root.glob("mlruns/*/meta.yaml"))
    if old:
        names = few([path.relative_to(root).as_posix() for path in old])
        yield Finding(
            "problem", "stores", f"an old-style file store: {names}; MLflow refuses it: move it out of mlruns"
        )
    apart = [path for name in ("mlflow.db", "mlruns") for path in root.glob(f"*/{name}") if path.parent.name[0] != "."]
    if apart:
        names = few([path.relative_to(root).as_posix() for path in apart])
        yield Finding("note", "stores", f"a second record: {names}; name it in MLFLOW_TRACKING_URI, or move it away")
    if not old and not apart:
        yield Finding("ok", "stores", "no stray MLflow store")


def check_trainings() -> Iterator[Finding]:
    """Trainings that were cut short and that nobody is at: they wait for `dvc repro` with their params."""
    root = main_workspace()
    waiting = cut_short(root / ATTEMPTS)
    if not waiting:
        yield Finding("ok", "trainings", "none was cut short")
        return
    names = [one.about + _checkpoint_of(root / CHECKPOINTS / f"{one.key}.pt") for one in waiting]
    yield Finding(
        "note", "trainings", f"did not end: {few(names)}; `dvc repro` with the params, data and code of one goes on "
        "from its checkpoint or starts it again; what is left goes when another training ends 30 days later"
    )  # fmt: skip


def _checkpoint_of(path: Path) -> str:
    if not path.is_file():
        return " (no checkpoint)"
    return f" (checkpoint of {datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d %H:%M})"


def _asked(name: str) -> Finding:
    """What the other commands would meet at a store that is not a file, asked in a process of its own."""
    answer = call(sys.executable, "-W", "ignore", "-m", "lenet5.record.server")
    if not answer:
        text = f"{name} cannot be asked, MLflow does not start; `python -m lenet5.record.server` says why"
        return Finding("problem", "mlflow", text)
    level, _, said = answer.strip().partition(" ")
    return Finding(level, "mlflow", f"{name} {said}")


def _database(uri: str, file: Path) -> Finding:
    if not file.is_file():
        text = f"no record at {file} yet; `dvc repro` makes it, and `make record` where every stage is up to date"
        return Finding("note", "mlflow", text)
    try:
        with closing(_opened(file)) as record:
            (schema,) = record.execute("SELECT version_num FROM alembic_version").fetchone()
            (runs,) = record.execute("SELECT count(*) FROM runs WHERE lifecycle_stage = 'active'").fetchone()
    except (sqlite3.Error, TypeError) as error:
        return Finding("problem", "mlflow", f"{file}: {_unreadable(file, error)}")
    known, newest = _schemas()
    if schema == newest:
        return Finding("ok", "mlflow", f"{file}: {runs} runs, schema {schema}")
    if schema in known:
        text = f"{file}: schema {schema} of an older MLflow; copy the file, then `mlflow db upgrade {shlex.quote(uri)}`"
        return Finding("problem", "mlflow", text)
    text = f"{file}: schema {schema} of a newer MLflow than {installed('mlflow')}; install the one that made it"
    return Finding("problem", "mlflow", text)


def _opened(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=_PATIENCE)


def _unreadable(file: Path, error: Exception) -> str:
    """Why a database says nothing, and what to do: one that is only in use, or closed to us, is to stay where it is."""
    if "locked" in str(error) or "busy" in str(error):
        return "in use by another process; try again"
    if not os.access(file, os.R_OK):
        return f"not yours to read ({error}); ask its owner"
    return f"no MLflow record ({error}); move it away, then `make record`"


def check_files() -> Iterator[Finding]:
    """Whether the results of a record in a file have their files, and the files a record."""
    file = _file_of_the_record()
    own = file.with_name("mlruns").absolute().as_uri()
    try:
        with closing(_opened(file)) as record:
            earlier = earlier_folder(record, own)  # the next command that records mends what a moved folder's says
            runs = record.execute("SELECT run_uuid, name, artifact_uri, status, lifecycle_stage FROM runs").fetchall()
            tags = record.execute("SELECT run_uuid, key, value FROM tags WHERE key IN ('result', 'attempt')").fetchall()
            models = {model for (model,) in record.execute("SELECT model_id FROM logged_models")}
    except sqlite3.Error:
        yield Finding("ok", "files", "no record here that could be compared with files; see mlflow")
        return
    results = {run for run, key, _ in tags if key == "result"}
    gone = [
        name
        for run, name, uri, _, stage in runs
        if run in results and stage == "active" and uri.startswith("file:")
        if not any(path_of(place).is_dir() for place in (uri, here(uri, earlier, own)))
    ]
    if gone:
        way = "`make record` brings back that of the outs here, `mlflow ui` deletes others"
        text = f"results without their files: {few(gone)}; {way}"
        yield Finding("problem", "files", text)
    unknown = list(_without_record(file.with_name("mlruns"), {run for run, *_ in runs} | models))
    if unknown:
        text = f"no run in {file.name} knows: {few(unknown)}; where no other record does, move them away"
        yield Finding("note", "files", text)
    started = {value for run, key, value in tags if key == "attempt" and (run, "RUNNING", "active") in _states(runs)}
    lost = started - names_of_attempts(main_workspace() / ATTEMPTS)
    names = [name for run, name, *_ in runs if any((run, "attempt", one) in tags for one in lost)]
    if names:
        text = f"RUNNING, but no training of this folder: {few(names)}; delete what is nobody's in `mlflow ui`"
        yield Finding("note", "files", text)
    if not gone and not unknown and not names:
        yield Finding("ok", "files", f"all results ({len(results)}) have their files")


def _file_of_the_record() -> Path:
    """The record's file, or one that is not there."""
    try:
        return sqlite_file(store_uri()) or Path("no record")
    except UserError:  # check_store tells
        return Path("no record")


def _states(runs: Iterable[tuple[str, ...]]) -> set[tuple[str, str, str]]:
    return {(run, status, stage) for run, _, _, status, stage in runs}


def _without_record(folder: Path, known: set[str]) -> Iterator[str]:
    """What lies in ``folder`` as MLflow lays files down, of runs and models that are not ``known``."""
    for path in sorted([*folder.glob("*/*"), *folder.glob("*/models/*")]):
        if re.fullmatch("[0-9a-f]{32}|m-[0-9a-f]{32}", path.name) and path.name not in known:
            yield path.relative_to(folder.parent).as_posix()


def _schemas() -> tuple[set[str], str]:
    """Every schema the installed MLflow has had, and the newest: the one that no other comes after."""
    found = find_spec("mlflow")
    folder = Path(str(found and found.origin)).parent / "store/db_migrations/versions"
    scripts = [path.read_text(encoding="utf-8") for path in folder.glob("*.py")]
    lines = {word: [re.findall(rf"^{word} = .*$", text, re.MULTILINE) for text in scripts]
             for word in ("revision", "down_revision")}  # fmt: skip
    known, left = (set(re.findall(r"[0-9a-f]{12}", str(lines[word]))) for word in ("revision", "down_revision"))
    return known, next(iter(known - left), "")
