"""A fork server: it starts stages in milliseconds, each a process of its own, having imported what is slow once.

As a script it reads lines ``{"cwd": ..., "script": ..., "env": {...}, "stdout": ..., "stderr": ...}`` from stdin and
answers each with the fork's pid, and ``{"wait": pid}`` with its exit status. ``Zygote`` is its client.
"""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil


class Zygote:
    """Starts the fork server, and asks it."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], cwd=Path(__file__).parent,  # not a test's folder, which ends with the test
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._running: set[int] = set()

    def start(self, cwd: Path, script: str, env: dict[str, str], stdout: Path, stderr: Path) -> int:
        """The pid of ``script`` running in ``cwd``, with ``env`` and no other variables."""
        request = {"cwd": str(cwd), "script": script, "env": env, "stdout": str(stdout), "stderr": str(stderr)}
        pid = int(self._ask(request))
        self._running.add(pid)
        return pid

    def wait(self, pid: int) -> int:
        """The exit status, negative for a signal."""
        status = int(self._ask({"wait": pid}))
        self._running.remove(pid)
        return status

    @property
    def idle(self) -> bool:
        """Whether every stage has been waited for; otherwise a test has failed, perhaps while it waited."""
        return not self._running

    def kill(self) -> None:
        """End the server, which may be in the middle of an answer, and all stages that it has started."""
        for child in psutil.Process(self._process.pid).children():
            child.kill()
        self._process.kill()
        self._process.communicate()

    def close(self) -> None:
        self._process.communicate()

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def run_in_fork(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[:0] = [f"{request['cwd']}/src", f"{request['cwd']}/stages"]
    sys.argv = [request["script"]]
    status = 0
    try:
        runpy.run_path(request["script"], run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    import mlflow.pyfunc  # noqa: F401 - a fork has it already
    import onnxruntime  # noqa: F401
    import torch._dynamo
    import torch._inductor  # noqa: F401 - the first optimizer, and asking for determinism, import these two

    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)
        else:
            print(json.dumps(run_in_fork(request)), flush=True)


if __name__ == "__main__":
    main()
