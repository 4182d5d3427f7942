"""How a bench shows what it found: tables on the terminal, and the same in ``bench/results/`` with the machine."""

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console

from lenet5.search.board import markdown, table

RESULTS = Path(__file__).parent / "results"

Rows = Sequence[Sequence[str]]


def machine(device: torch.device, packages: Sequence[str]) -> dict[str, str]:
    """The hardware at ``device`` and the versions of ``packages``, by name."""
    cpu = [line for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "cpu": cpu[0].partition(": ")[2] if cpu else platform.processor(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def print_tables(tables: Sequence[Rows]) -> None:
    """Each table's first row is its header."""
    console = Console()
    for header, *rows in tables:
        console.print(table("", header, rows))


def page(title: str, facts: Mapping[str, str], tables: Sequence[Rows]) -> str:
    """The tables in Markdown, under what they were measured on."""
    listed = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    written = [markdown(header, rows) for header, *rows in tables]
    return "\n".join([f"# Bench: {title}\n", f"{listed}\n", *written])


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
