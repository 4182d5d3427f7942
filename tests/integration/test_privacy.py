"""Nothing leaves the machine, and nothing is left outside the workspace, by any command."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from .conftest import Project
from .test_sweep import PLAN

# Answers no look-up, and keeps a list of them: in a network of its own, whose only machine is this one.
NAMESERVER = """
import fcntl, os, socket, struct, subprocess, sys

asked, command = sys.argv[1], sys.argv[2:]
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(one, 0x8914, struct.pack("16sh14x", b"lo", 0x41))  # SIOCSIFFLAGS: up, running
one.bind(("127.0.0.1", 53))
if not os.fork():
    while True:
        question, sender = one.recvfrom(4096)
        with open(asked, "ab") as file:
            file.write(question[12:] + b"\\n")
        one.sendto(question[:2] + b"\\x81\\x83" + question[4:], sender)
sys.exit(subprocess.call(command))
"""

COMMANDS = {
    "a prediction": "lenet5 predict docs/img/boot.png",
    "the champion's": "lenet5 predict --model models:/lenet5-fashionmnist@champion docs/img/boot.png",
    "a server": "timeout --preserve-status --signal INT 12 lenet5 serve --port 8765",
    "a comparison": "lenet5 compare champion champion",
    "training": "python stages/train.py",
    "export": "python stages/export.py",
    "the record": "python stages/register.py",
    "dvc": "dvc status && dvc metrics diff",
    "a sweep": "lenet5 sweep run sweeps/tiny.yaml",
    "seeds": "lenet5 seeds --count 2",
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_command_looks_nothing_up_and_leaves_no_file_elsewhere(
    pipeline_copy: Project, tmp_path: Path, command: str
) -> None:
    home, temporary, asked, resolv = (tmp_path / name for name in ("home", "temporary", "asked", "resolv.conf"))
    home.mkdir()
    temporary.mkdir()
    resolv.write_text("nameserver 127.0.0.1\n")
    (tmp_path / "nameserver.py").write_text(NAMESERVER)
    pipeline_copy.shrink({"train.epochs": 1, "train.engine": "eager"})
    (pipeline_copy.path / "sweeps/tiny.yaml").write_text(yaml.safe_dump(PLAN | {"fixed": {}, "trials": 2}))
    own = {name: value for name, value in pipeline_copy.env.items() if not name.startswith(("XDG_", "ORT_"))}
    pipeline_copy.env = own | {"HOME": str(home), "TMPDIR": str(temporary)}
    script = f"mount --bind {resolv} /etc/resolv.conf; exec python {tmp_path}/nameserver.py {asked} sh -ec '{command}'"
    apart = ["unshare", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec"]
    if not shutil.which("unshare") or subprocess.run([*apart, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system lets nobody have a network of his own (unshare, from util-linux)")
    pipeline_copy.run(*apart, script)
    assert not asked.exists(), asked.read_bytes()
    left = [path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()]
    assert [name for name in left if not name.startswith(".cache/matplotlib/")] == []
