"""Where a result comes from: code, data, machine and the versions of what computed it."""

import getpass
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version

from lenet5.data.fashion_mnist import data_digest
from lenet5.errors import without_credentials
from lenet5.files import digest
from lenet5.outs import EXPORT
from lenet5.workspace import PARAMS_FILE

# `git apply` must be able to read it, whatever the person's git is set to.
_PLAIN = (
    "--no-ext-diff", "--no-textconv", "--no-color", "--binary", "--full-index", "--unified=3", "--no-renames",
    "--no-relative", "--ignore-submodules=none", "--submodule=short", f"-O{os.devnull}",
    "--src-prefix=a/", "--dst-prefix=b/",
)  # fmt: skip
# What git would take from the environment in place of the arguments above.
_OVERRIDING = {"GIT_DIFF_OPTS", "GIT_LITERAL_PATHSPECS", "GIT_GLOB_PATHSPECS", "GIT_NOGLOB_PATHSPECS"}
_LIBRARIES = ("torch", "numpy", "onnx", "onnxruntime", "mlflow", "dvc")

CODE_TAGS = (
    "mlflow.source.git.commit", "mlflow.source.git.branch", "mlflow.source.git.repoURL", "git.dirty", "digest.params",
)  # fmt: skip
"""The tags of a run that say which code and params made it."""

EXPERIMENT_TAGS = {"dvc.experiment": "DVC_EXP_NAME", "dvc.baseline": "DVC_EXP_BASELINE_REV"}
"""The tags of a run that DVC started as an experiment, and where DVC says what it is."""


@dataclass(frozen=True)
class Code:
    """The state of the repository; ``diff`` is what the working tree changes of ``commit``, empty when clean.

    Bytes of it that are no UTF-8 are surrogates, as ``surrogateescape`` makes them.
    """

    commit: str
    branch: str
    remote: str
    diff: str


def read_code() -> Code:
    """Ask git. All fields are empty outside a repository."""
    # A queued experiment runs on a commit of DVC's own, which nobody can check out later; its baseline stays.
    commit = os.environ.get("DVC_EXP_BASELINE_REV") or _git("rev-parse", "HEAD")
    if not commit and distrusted():
        print(f"this result will not say which code made it: {distrusted()}", file=sys.stderr, flush=True)
    return Code(
        commit=commit,
        branch=_git("rev-parse", "--abbrev-ref", "HEAD"),
        remote=without_credentials(_git("config", "--get", "remote.origin.url")),
        diff=_diff(commit) if commit else "",
    )


def changed_files() -> list[str]:
    """The files of this folder that the last commit has otherwise; none outside a repository."""
    return _git("diff", "--name-only", "--relative", "-z", "HEAD", "--", ".").split("\0")[:-1]


def distrusted() -> str:
    """What to do where git says nothing of a repository because another user owns it; empty where that is not so."""
    command = ["git", "rev-parse", "--git-dir"]
    try:
        done = subprocess.run(command, env=os.environ | {"LC_ALL": "C"}, capture_output=True, check=False)
    except FileNotFoundError:
        return ""
    found = re.search(rb"dubious ownership.* '(.*)'", done.stderr)
    if done.returncode == 0 or not found:
        return ""
    place = shlex.quote(os.fsdecode(found[1]))
    return (
        "git does not trust the repository, which another user owns; if you do, "
        f"`git config --global --add safe.directory {place}`"
    )


def _diff(commit: str) -> str:
    """What the working tree changes of ``commit``, new files of code with it that git has not been told of yet."""
    changed = _git("diff", *_PLAIN, commit, "--", ".", ":(exclude)dvc.lock", ":(exclude)metrics")
    new = _git("ls-files", "-z", "--others", "--exclude-standard", "--", "src", "stages").split("\0")[:-1]
    folder = _git("rev-parse", "--show-prefix")  # a pipeline may lie in one of its repository
    here = (f"--src-prefix=a/{folder}", f"--dst-prefix=b/{folder}")
    added = [_git("diff", *_PLAIN, *here, "--no-index", "--", os.devnull, path, differs=1) for path in new]
    return "\n".join(filter(None, [changed, *added]))


def lineage_tags(code: Code) -> dict[str, str]:
    """The tags every run carries; those of MLflow's own names are shown in its run table."""
    tags = {
        "mlflow.source.name": "dvc repro",
        "mlflow.source.type": "PROJECT",
        "mlflow.user": user(),
        "mlflow.source.git.commit": code.commit,
        "mlflow.source.git.branch": code.branch,
        "mlflow.source.git.repoURL": code.remote,
        "git.dirty": str(bool(code.diff)).lower() if code.commit else "",
        **{tag: os.environ.get(variable, "") for tag, variable in EXPERIMENT_TAGS.items()},
        "digest.params": digest(PARAMS_FILE.read_bytes()),
        "digest.data": data_digest(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "versions": ", ".join(
            [f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in _LIBRARIES)]
        ),
    }
    return {name: value for name, value in tags.items() if value}


def experiments_called(name: str) -> list[dict[str, str]]:
    """Tags of the runs of the DVC experiments of this name, which `dvc exp rename` may have given them since."""
    tags = []
    for ref in _git("for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{name}").splitlines():
        export, params = (_git_bytes("show", f"{ref}:./{path.as_posix()}") for path in (EXPORT, PARAMS_FILE))
        with suppress(ValueError, KeyError, TypeError):  # not of this pipeline, or of one before it kept that
            tags.append({"digest.weights": json.loads(export)["weights_sha256"], "digest.params": digest(params)})
    return tags


def user() -> str:
    """Who runs this; empty where the machine does not know."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user id without a name
        return ""


def _git(*arguments: str, differs: int = 0) -> str:
    """What git prints, without its last line end; nothing where its exit status is neither 0 nor ``differs``."""
    return _git_bytes(*arguments, differs=differs).decode(errors="surrogateescape").removesuffix("\n")


def _git_bytes(*arguments: str, differs: int = 0) -> bytes:
    environment = {name: value for name, value in os.environ.items() if name not in _OVERRIDING}
    try:
        done = subprocess.run(["git", *arguments], env=environment, capture_output=True, check=False)
    except FileNotFoundError:
        return b""
    return done.stdout if done.returncode in (0, differs) else b""
