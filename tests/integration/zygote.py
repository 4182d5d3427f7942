"""Starts stages in milliseconds: imports what is slow once, then runs each stage script in a fork of itself.

Reads lines ``{"cwd": ..., "script": ..., "env": {...}, "output": ...}`` from stdin; answers each with the fork's pid,
and with its exit status when asked for it by ``{"wait": pid}``.
"""

import json
import os
import runpy
import sys

import mlflow.onnx  # noqa: F401 - a fork has it already
import onnxruntime  # noqa: F401
import torch  # noqa: F401


def run_in_fork(request: dict[str, str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(request["cwd"])
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
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)
        else:
            print(json.dumps(run_in_fork(request)), flush=True)


if __name__ == "__main__":
    main()
