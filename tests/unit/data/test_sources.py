import gzip
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO

import pytest
import urllib3.util.connection
from torchvision.datasets import FashionMNIST

from lenet5.data.fashion_mnist import SHA256
from lenet5.data.sources import fetch_all
from lenet5.errors import UserError
from lenet5.files import digest
from lenet5.params import DownloadParams

FROM_TORCHVISION = DownloadParams(sources=["torchvision"], local_dir=None, timeout=5)
NOBODY = "http://127.0.0.1:9/"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server with four small files that pass for the published ones."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    for name in SHA256:
        monkeypatch.setitem(SHA256, name, digest(name.encode()))
        (folder / f"{name}.gz").write_bytes(gzip.compress(name.encode()))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_torchvisions_mirrors_are_asked_one_after_the_other_until_one_gives_the_files(
    mirror: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(FashionMNIST, "mirrors", [NOBODY, mirror, f"{mirror}never-asked/"])
    refused, taken = fetch_all(tmp_path / "raw", FROM_TORCHVISION, None)
    assert refused.startswith(NOBODY)
    assert taken == f"{mirror}: 4 files, verified"
    assert all((tmp_path / "raw" / name).read_bytes() == name.encode() for name in SHA256)


def test_an_address_that_is_none_is_told_and_the_next_is_asked(mirror: str, tmp_path: Path) -> None:
    wrong = ["https://mirror..example.org/", f"https://{'a' * 64}.example.org/"]
    params = DownloadParams(sources=[*wrong, mirror], local_dir=None, timeout=5)
    *refused, taken = fetch_all(tmp_path / "raw", params, None)
    assert [line.split(": ")[0] for line in refused] == wrong
    assert taken == f"{mirror}: 4 files, verified"


def test_a_ca_bundle_that_is_not_there_is_told_and_the_next_source_is_asked(
    mirror: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/gone.pem")
    params = DownloadParams(sources=["https://127.0.0.1:9/", mirror], local_dir=None, timeout=5)
    refused, taken = fetch_all(tmp_path / "raw", params, None)
    assert refused.startswith("https://127.0.0.1:9/: ")
    assert "/gone.pem" in refused
    assert taken == f"{mirror}: 4 files, verified"


def test_a_server_that_falls_silent_in_the_middle_of_a_file_is_told_as_silent(
    mirror: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given_up = threading.Event()

    def begin(_: Quiet, file: BinaryIO, stream: BinaryIO) -> None:
        stream.write(file.read(9))
        given_up.wait(60)

    monkeypatch.setattr(Quiet, "copyfile", begin)
    with pytest.raises(UserError, match=rf"{mirror}: silent for 0\.2 s"):
        fetch_all(tmp_path / "raw", DownloadParams(sources=[mirror], local_dir=None, timeout=0.2), None)
    given_up.set()


def test_a_host_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def wait_in_vain(address: tuple[str, int], *_: object, **__: object) -> None:
        asked.append(address)
        raise TimeoutError

    monkeypatch.setattr(urllib3.util.connection, "create_connection", wait_in_vain)
    with pytest.raises(UserError, match=f"{NOBODY}: silent for 5 s"):
        fetch_all(tmp_path / "raw", DownloadParams(sources=[NOBODY], local_dir=None, timeout=5), None)
    assert asked == [("127.0.0.1", 9)]


def test_a_torchvision_that_cannot_be_imported_is_told_and_the_next_source_is_asked(
    mirror: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "packages/torchvision/__init__.py"
    package.parent.mkdir(parents=True)
    package.write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(package.parents[1])
    for name in ("torchvision", "torchvision.datasets"):
        monkeypatch.delitem(sys.modules, name)
    params = DownloadParams(sources=["torchvision", mirror], local_dir=None, timeout=5)
    assert fetch_all(tmp_path / "raw", params, None) == [
        "torchvision: cannot be imported (operator torchvision::nms does not exist)",
        f"{mirror}: 4 files, verified",
    ]


def test_a_server_that_calls_gzip_an_encoding_gives_the_files_too(
    mirror: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    end = Quiet.end_headers

    def with_encoding(handler: Quiet) -> None:
        handler.send_header("Content-Encoding", "gzip")
        end(handler)

    monkeypatch.setattr(Quiet, "end_headers", with_encoding)
    (taken,) = fetch_all(tmp_path / "raw", DownloadParams(sources=[mirror], local_dir=None, timeout=5), None)
    assert taken == f"{mirror}: 4 files, verified"


@pytest.mark.usefixtures("mirror")
def test_a_folder_in_a_persons_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    params = DownloadParams(sources=[NOBODY], local_dir="~/mirror", timeout=5)
    assert fetch_all(tmp_path / "raw", params, None) == ["~/mirror: 4 files, verified"]
    assert fetch_all(tmp_path / "raw", params, "~/mirror") == []  # nothing is wanted, and nobody looked


def test_the_home_of_nobody_is_told_and_the_next_source_is_asked(mirror: str, tmp_path: Path) -> None:
    params = DownloadParams(sources=[mirror], local_dir="~no-such-person/mirror", timeout=5)
    refused, taken = fetch_all(tmp_path / "raw", params, None)
    assert refused.startswith("~no-such-person/mirror: holds neither ")
    assert taken == f"{mirror}: 4 files, verified"


def test_a_mirror_with_other_bytes_is_refused_and_named(
    mirror: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(FashionMNIST, "mirrors", [mirror])
    monkeypatch.setitem(SHA256, next(iter(SHA256)), "0" * 64)
    with pytest.raises(UserError, match=rf"{mirror}: .* is not the published file"):
        fetch_all(tmp_path / "raw", FROM_TORCHVISION, None)


def test_torchvision_has_mirrors_of_the_files_we_name() -> None:
    assert FashionMNIST.mirrors
    assert {name.removesuffix(".gz") for name, _ in FashionMNIST.resources} == set(SHA256)


@pytest.mark.parametrize("secret", ["sesame", "ses/ame", "s@same?#", "ses%2Fame"])
def test_no_password_of_a_source_is_shown(tmp_path: Path, mirror: str, secret: str) -> None:
    source = mirror.replace("http://", f"http://someone:{secret}@")
    params = DownloadParams(sources=[source], local_dir=None, timeout=5)
    try:
        said = " ".join(fetch_all(tmp_path / "raw", params, None))
    except UserError as error:  # one whose reserved characters are not quoted leads nowhere
        said = str(error)
    assert mirror.split("//")[1] in said
    assert not any(part in said for part in (secret, "someone", "same"))
