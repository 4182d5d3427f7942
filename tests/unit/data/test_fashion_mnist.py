import pytest

from lenet5.data.fashion_mnist import SHA256, data_digest


def test_other_data_has_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    before = data_digest()
    monkeypatch.setitem(SHA256, next(iter(SHA256)), "0" * 64)
    assert data_digest() != before
