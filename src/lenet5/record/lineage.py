"""Where a result comes from: code, data, machine and the versions of what computed it."""

import getpass
import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import version

from lenet5.fashion_mnist import SHA256
from lenet5.files import digest
from lenet5.workspace import PARAMS_FILE

# `git apply` must be able to read it, whatever the person's git is set to.
_PLAIN = ("--no-ext-diff", "--no-color", "--binary", "--src-prefix=a/", "--dst-prefix=b/")
_LIBRARIES = ("torch", "numpy", "onnx", "onnxruntime", "mlflow", "dvc")

EXPERIMENT_TAGS = {"dvc.experiment": "DVC_EXP_NAME", "dvc.baseline": "DVC_EXP_BASELINE_REV"}
"""The tags of a run that DVC started as an experiment, and where DVC says what it is."""


@dataclass(frozen=True)
class Code:
    """The state of the repository; ``diff`` is what the working tree changes of ``commit``, empty when clean."""

    commit: str
    branch: str
    remote: str
    diff: str


def read_code() -> Code:
    """Ask git. All fields are empty outside a repository."""
    # A queued experiment runs on a commit of DVC's own, which nobody can check out later; its baseline stays.
    commit = os.environ.get("DVC_EXP_BASELINE_REV") or _git("rev-parse", "HEAD")
    return Code(
        commit=commit,
        branch=_git("rev-parse", "--abbrev-ref", "HEAD"),
        remote=without_credentials(_git("config", "--get", "remote.origin.url")),
        diff=_diff(commit) if commit else "",
    )


def _diff(commit: str) -> str:
    """What the working tree changes of ``commit``, new files of code with it that git has not been told of yet."""
    changed = _git("diff", *_PLAIN, commit, "--", ".", ":(exclude)dvc.lock", ":(exclude)metrics")
    new = _git("ls-files", "-z", "--others", "--exclude-standard", "--", "src", "stages").split("\0")[:-1]
    added = [_git("diff", *_PLAIN, "--no-index", "--", os.devnull, path, differs=1) for path in new]
    return "\n".join(filter(None, [changed, *added]))


def without_credentials(url: str) -> str:
    """Take user and password out of ``https://user:token@host/path``; of ssh the user stays, it is no secret."""
    scheme, separator, rest = url.partition("://")
    server, slash, path = rest.partition("/")
    user, at, host = server.rpartition("@")
    kept = f"{user.partition(':')[0]}@" if at and scheme == "ssh" else ""
    return f"{scheme}{separator}{kept}{host}{slash}{path}" if separator else url


def lineage_tags(code: Code) -> dict[str, str]:
    """The tags every run carries; those of MLflow's own names are shown in its run table."""
    tags = {
        "mlflow.source.name": "dvc repro",
        "mlflow.source.type": "PROJECT",
        "mlflow.user": _user(),
        "mlflow.source.git.commit": code.commit,
        "mlflow.source.git.branch": code.branch,
        "mlflow.source.git.repoURL": code.remote,
        "git.dirty": str(bool(code.diff)).lower(),
        **{tag: os.environ.get(variable, "") for tag, variable in EXPERIMENT_TAGS.items()},
        "digest.params": digest(PARAMS_FILE.read_bytes()),
        "digest.data": data_digest(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "versions": ", ".join(
            [f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in _LIBRARIES)]
        ),
    }
    return {name: value for name, value in tags.items() if value}


def data_digest() -> str:
    """Identify FashionMNIST: the files that all stages insist on."""
    return digest("".join(sorted(SHA256.values())).encode())


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user id without a name
        return ""


def _git(*arguments: str, differs: int = 0) -> str:
    """What git prints, its line ends as they are; nothing where its exit status is neither 0 nor ``differs``."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        return ""
    printed = done.stdout.decode(errors="replace").removesuffix("\n")
    return printed if done.returncode in (0, differs) else ""
