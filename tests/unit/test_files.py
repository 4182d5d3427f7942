import errno
import json
import os
import stat
import time
from pathlib import Path

import pytest

from lenet5.errors import UserError
from lenet5.files import (
    atomic_path,
    digest,
    folder_name,
    read_json,
    read_trusted,
    remove_old,
    remove_whole,
    write_bytes,
    write_json,
)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_new_content_appears_only_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with atomic_path(path) as beside:
        beside.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert beside.parent == path.parent
        assert beside.suffix == ".onnx"
    assert contents(tmp_path) == {"model.onnx": b"new"}


def write_half(path: Path, error: type[BaseException]) -> None:
    with atomic_path(path) as beside:
        beside.write_bytes(b"half of the new")
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_block_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "model.onnx").write_bytes(b"old")
    with pytest.raises(error):
        write_half(tmp_path / "model.onnx", error)
    assert contents(tmp_path) == {"model.onnx": b"old"}


def test_a_failed_first_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write_half(tmp_path / "model.onnx", RuntimeError)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0, 0o666)])
def test_a_new_file_has_the_permissions_of_any_other_new_file(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_bytes(tmp_path / "new", b"content")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == mode


def test_files_nobody_has_written_for_long_are_removed(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    (tmp_path / "new").touch()
    (tmp_path / "held.lock").touch()
    for name in ("old", "held.lock"):
        os.utime(tmp_path / name, times=(time.time() - 31 * 24 * 3600,) * 2)
    remove_old(tmp_path)
    assert contents(tmp_path).keys() == {"new", "held.lock"}
    remove_old(tmp_path / "not there yet")


def test_what_a_killed_process_left_goes_with_its_file(tmp_path: Path) -> None:
    path, other = tmp_path / "a[b].pt", tmp_path / "other.pt"
    for one in (path, other):
        with atomic_path(one) as beside:
            pass
        beside.write_bytes(b"ha")  # as a process that never came to the rename leaves it
    remove_whole(path)
    assert set(tmp_path.iterdir()) == {other, beside}
    remove_whole(path)  # gone already


def test_folders_are_made_on_the_way(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a/b/c", b"content")
    assert (tmp_path / "a/b/c").read_bytes() == b"content"


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path: Path) -> None:
    (tmp_path / "cached").write_bytes(b"cached")
    (tmp_path / "out").symlink_to(tmp_path / "cached")
    write_bytes(tmp_path / "out", b"new")
    assert contents(tmp_path) == {"cached": b"cached", "out": b"new"}
    assert not (tmp_path / "out").is_symlink()


def test_json_comes_back_and_diffs_well(tmp_path: Path) -> None:
    content = {"loss": 0.1 + 0.2, "classes": {"Bag": [1, None]}}
    write_json(tmp_path / "metrics.json", content)
    assert read_json(tmp_path / "metrics.json") == content
    text = (tmp_path / "metrics.json").read_text()
    assert text.endswith("}\n")
    assert '\n  "loss": 0.30000000000000004,\n' in text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_without_a_number_is_refused_and_the_old_file_stays(tmp_path: Path, value: float) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"loss": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"figures": {"loss": value}})
    assert json.loads(path.read_text()) == {"loss": 1}
    assert list(contents(tmp_path)) == ["metrics.json"]


@pytest.mark.parametrize(
    ("content", "told"), [(None, "not found; `dvc repro` makes it"), (b"{", "not JSON any more"), (b"\xff", "not JSON")]
)
def test_json_that_cannot_be_read_is_told(tmp_path: Path, content: bytes | None, told: str) -> None:
    path = tmp_path / "metrics.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"metrics\.json: {told}"):
        read_json(path)


def test_a_file_is_trusted_only_as_its_stage_left_it(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(UserError, match=r"model\.onnx: not found; `dvc repro export` makes it"):
        read_trusted(path, digest(b"content"), "export")
    path.write_bytes(b"content")
    assert read_trusted(path, digest(b"content"), "export") == b"content"
    path.write_bytes(b"Content")
    with pytest.raises(UserError, match=r"model\.onnx: not what the stage export left .*`dvc repro export` mends it"):
        read_trusted(path, digest(b"content"), "export")


def test_a_full_disk_says_for_which_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space") as told, atomic_path(tmp_path / "model.onnx"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert told.value.filename == str(tmp_path / "model.onnx")
    assert contents(tmp_path) == {}


def test_digest_is_sha256() -> None:
    assert digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest(b"abc") != digest(b"abd")


AS_THEY_ARE = ["lenet5-fashionmnist", "My Projects", "卷积 v1.0", "a+b", "_", "-x"]


@pytest.mark.parametrize("name", AS_THEY_ARE)
def test_a_plain_name_is_a_folders_name_as_it_is(name: str) -> None:
    assert folder_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "../../outside", "..", ".", "", "/etc", "a/b", "a\\b", ".hidden", "trailing. ", " leading", "CON", "nul.txt",
        "a:b", "a?b", "a\nb", "a*b", "x" * 300, "卷" * 90, "line\x00end", "100%", "~", "$HOME", "\udcff",
    ],
    ids=ascii,
)  # fmt: skip
def test_any_other_name_gives_one_folder_of_its_own_inside(name: str, tmp_path: Path) -> None:
    folder = tmp_path / folder_name(name)
    folder.mkdir()
    assert folder.resolve().parent == tmp_path.resolve()
    assert not folder.name.startswith(".")
    assert folder_name(name) == folder.name
    others = [*AS_THEY_ARE, f"{name}x", f"{name}/", folder.name + "x"]
    assert folder.name not in {folder_name(other) for other in others if other != name}
