"""Getting the four FashionMNIST files, from wherever they can be had, and trusting none of it unverified."""

import gzip
import io
import os
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from urllib3.exceptions import HTTPError, ReadTimeoutError
from urllib3.util import Retry

from lenet5.data.fashion_mnist import SHA256, is_verified
from lenet5.errors import UserError, without_credentials
from lenet5.files import digest, from_home, write_bytes
from lenet5.params import DownloadParams

DEBIAN_PACKAGE = "dataset-fashion-mnist"
_APT_SECONDS = 600
_LARGEST = 64 * 1024 * 1024  # no file of FashionMNIST comes near it, plain or compressed
_CHUNK = 1 << 16
_GZIP = b"\x1f\x8b"

Fetch = Callable[[str], bytes]
"""Gives the uncompressed content of one of the four files, by its name. Raises SourceError."""


class SourceError(Exception):
    """Why a source did not give a file."""


def fetch_all(raw_dir: Path, params: DownloadParams, own_copy: str | None) -> list[str]:
    """Put the four verified files into ``raw_dir``; those already there and right are left alone.

    ``own_copy`` (FASHION_MNIST_DIR) and ``params.local_dir`` come before ``params.sources``. Returns a line for
    each source that was tried. Raises UserError with every source's reason when none could give a file.
    """
    wanted = [name for name in SHA256 if not is_verified(raw_dir / name)]
    report: list[str] = []
    for folder in filter(None, (own_copy, params.local_dir)):
        if wanted:
            wanted = _take(folder, partial(_from_folder, from_home(folder)), wanted, raw_dir, report)
    for source in params.sources:
        if wanted and source == "debian":
            with tempfile.TemporaryDirectory() as scratch:
                wanted = _take(source, _debian_fetch(Path(scratch)), wanted, raw_dir, report)
        elif wanted:
            for address in _addresses(source, report):
                with _session() as session, _progress() as bars:
                    fetch = _http_fetch(address, params.timeout, session, bars)
                    wanted = _take(address, fetch, wanted, raw_dir, report)
                if not wanted:
                    break
    if wanted:
        raise UserError(
            f"no source gave {', '.join(wanted)}. {'; '.join(report)}. To supply them by hand, put the four files "
            "(plain or .gz) in a folder and name it in download.local_dir or FASHION_MNIST_DIR"
        )
    return report


def _take(source: str, fetch: Fetch, wanted: list[str], raw_dir: Path, report: list[str]) -> list[str]:
    """Fetch what is wanted from one source until it fails; returns what is still wanted and reports."""
    taken = 0
    try:
        for name in wanted:
            content = fetch(name)
            if digest(content) != SHA256[name]:
                raise SourceError(f"{name} is not the published file (SHA-256 differs), refused")
            write_bytes(raw_dir / name, content)
            taken += 1
        report.append(f"{without_credentials(source)}: {taken} files, verified")
    except SourceError as error:
        report.append(f"{without_credentials(source)}: {error}")
    return wanted[taken:]


def _from_folder(folder: Path, name: str) -> bytes:
    plain, packed = folder / name, folder / f"{name}.gz"
    try:
        if plain.is_file():
            return plain.read_bytes()
        if packed.is_file():
            return _unpack(packed.read_bytes(), name)
    except OSError as error:
        raise SourceError(f"{name} cannot be read: {error.strerror}") from None
    raise SourceError(f"holds neither {name} nor {name}.gz")


def _unpack(packed: bytes, name: str) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
            return stream.read(_LARGEST)
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{name}.gz is cut or damaged: {error}") from None


def _session() -> requests.Session:
    session = requests.Session()
    # A server that stays silent once is not asked again: there are other sources.
    busy = (429, 500, 502, 503, 504)
    retry = Retry(total=2, connect=0, read=False, backoff_factor=0.5, status_forcelist=busy, raise_on_status=False)
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )


def _addresses(source: str, report: list[str]) -> list[str]:
    """The addresses that ``source`` stands for; of a torchvision that cannot tell, the report says why."""
    if source != "torchvision":
        return [source]
    try:
        return _mirrors()
    except Exception as error:  # one for another PyTorch raises whatever its import comes upon
        report.append(f"{source}: cannot be imported ({error})")
        return []


def _mirrors() -> list[str]:
    """Where torchvision fetches FashionMNIST. Its own download shows no speed, waits for ever and trusts MD5."""
    from torchvision.datasets import FashionMNIST  # late: it takes seconds

    return list(FashionMNIST.mirrors)


def _http_fetch(base: str, timeout: float, session: requests.Session, bars: Progress) -> Fetch:
    """From a folder with the four .gz files behind ``base``."""

    def fetch(name: str) -> bytes:
        try:
            with session.get(f"{base.rstrip('/')}/{name}.gz", timeout=timeout, stream=True) as response:
                response.raise_for_status()
                length = response.headers.get("Content-Length", "")
                task = bars.add_task(name, total=int(length) if length.isdigit() else None)
                content = bytearray()
                for chunk in response.iter_content(_CHUNK):
                    content += chunk
                    bars.advance(task, len(chunk))
                    if len(content) > _LARGEST:
                        raise SourceError(f"{name}.gz is larger than FashionMNIST can be, refused")
        except (requests.RequestException, HTTPError) as error:  # the second where a host is no host's name
            raise SourceError(_reason(error, timeout)) from None
        except OSError as error:  # requests' own, where REQUESTS_CA_BUNDLE names no file
            raise SourceError(str(error)) from None
        if "Content-Encoding" in response.headers and not content.startswith(_GZIP):  # it was unpacked on the way
            return bytes(content)
        return _unpack(bytes(content), name)

    return fetch


def _reason(error: requests.RequestException | HTTPError, timeout: float) -> str:
    if isinstance(error, requests.RequestException) and error.response is not None:
        return f"answered {error.response.status_code} {error.response.reason}"
    # In the middle of a file requests calls a timeout a ConnectionError.
    if isinstance(error, requests.Timeout) or isinstance(error.__context__, ReadTimeoutError):
        return f"silent for {timeout:g} s"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "broke off in the middle of a file"
    if isinstance(error, requests.ConnectionError):
        return "cannot be reached"
    return type(error).__name__  # its text may hold the address, password included


def _debian_fetch(scratch: Path) -> Fetch:
    """From Debian's package, fetched and unpacked in ``scratch`` on first use, without root or installing."""

    def fetch(name: str) -> bytes:
        folder = scratch / "root/usr/share/datasets/fashion-mnist"
        if not folder.is_dir():
            _unpack_debian_package(scratch)
        return _from_folder(folder, name)

    return fetch


def _unpack_debian_package(scratch: Path) -> None:
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            raise SourceError(f"this machine has no {tool}")
    (scratch / "lists/partial").mkdir(parents=True)
    (scratch / "cache/archives/partial").mkdir(parents=True)
    settings = {
        "Dir::State::Lists": scratch / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": scratch / "cache",
        "APT::Sandbox::User": "",
        "Debug::NoLocking": "1",
    }
    options = [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]
    _call(["apt-get", *options, "update"], scratch)
    _call(["apt-get", *options, "download", DEBIAN_PACKAGE], scratch)
    packages = list(scratch.glob("*.deb"))
    if not packages:
        raise SourceError(f"apt-get brought no {DEBIAN_PACKAGE}")
    _call(["dpkg-deb", "-x", str(packages[0]), str(scratch / "root")], scratch)


def _call(command: list[str], folder: Path) -> None:
    environment = os.environ | {"LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_APT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SourceError(f"{command[0]} took longer than {_APT_SECONDS} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("E:")] or [f"status {done.returncode}"]
        raise SourceError(f"{command[0]}: {lines[0].removeprefix('E: ')}")
