import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from lenet5.commands import cluster
from lenet5.errors import UserError
from lenet5.search.ray_settings import WORKSPACE

SLEEPS = "import time; print('awake', flush=True); time.sleep(600)"
HAS_ONE_MORE = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPS!r}], env={{}})"


class Started:
    """Processes that sleep, each with the workspace it was started from."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def __call__(self, workspace: Path, program: str = SLEEPS) -> psutil.Process:
        process = self._stack.enter_context(
            subprocess.Popen([sys.executable, "-c", program], env={WORKSPACE: str(workspace)}, stdout=subprocess.PIPE)
        )
        self._stack.callback(process.kill)
        assert process.stdout
        assert process.stdout.readline() == b"awake\n"
        return psutil.Process(process.pid)


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def started() -> Iterator[Started]:
    with ExitStack() as stack:
        yield Started(stack)


def test_stop_ends_what_was_started_from_this_workspace_and_nothing_else(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own, other = started(tmp_path, HAS_ONE_MORE), started(tmp_path / "another")
    (worker,) = own.children()
    monkeypatch.chdir(tmp_path)
    assert cluster.stop() == 0
    assert capsys.readouterr().out == "what was started from here has ended\n"
    assert ended(own)
    assert ended(worker)
    assert not ended(other)
    monkeypatch.chdir(tmp_path.parent)
    assert cluster.stop() == 0
    assert capsys.readouterr().out == f"no Ray was started from {tmp_path.parent}\n"


@pytest.mark.parametrize("port", [-1, 0, 64936, 70000])
def test_a_port_that_cannot_be_had_is_refused_before_a_token_is_made(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(cluster.ray_settings, "require_ray", lambda: None)
    with pytest.raises(UserError, match=f"--port {port}: from 1 to 64935, as it takes those up to 600 above it"):
        cluster.head("127.0.0.1", port, None)
    assert list(tmp_path.iterdir()) == []
