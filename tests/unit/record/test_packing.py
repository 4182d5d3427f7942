import json
import zipfile
from pathlib import Path

import pytest

from lenet5.errors import UserError
from lenet5.params import Params
from lenet5.record import packing
from lenet5.record.packing import pack, take


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A file as ``pack`` writes it, as far as it is read before anything is recorded."""
    file = tmp_path / "result.zip"
    about = {"format": 1, "name": "a name", "points": [[f"loss/{epoch}", epoch / 7, epoch, 0] for epoch in range(99)]}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as content:
        content.writestr("result.json", json.dumps(about))
    return file


def test_one_wrong_bit_anywhere_is_damage_or_changes_nothing(
    packed: Path, tmp_path: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = packed.read_bytes()
    right = packing._unpack(packed, tmp_path / "right")

    def came_so_far(_: Params) -> None:
        raise InterruptedError

    monkeypatch.setattr(packing, "connect", came_so_far)
    damaged, told = tmp_path / "damaged.zip", set()
    for place in range(len(whole)):
        damaged.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            take(damaged, params)
        except UserError as error:
            told.add(str(error).partition(";")[0])
        except InterruptedError:
            assert packing._unpack(damaged, tmp_path / str(place)) == right
    assert told == {f"{damaged}: not a file that `lenet5 record pack` wrote, or damaged"}


def test_a_result_is_not_packed_into_a_folder(tmp_path: Path, params: Params) -> None:
    folder = tmp_path / "folder.zip"
    folder.mkdir()
    for place in (tmp_path, folder):
        with pytest.raises(UserError, match="give a file that ends in"):
            pack("champion", params, place)
