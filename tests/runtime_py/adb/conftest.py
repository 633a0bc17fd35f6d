import pytest

from tests.runtime_py.adb.fake_adb import FakeAdb


@pytest.fixture
def adb(tmp_path, monkeypatch):
    fake = FakeAdb(tmp_path / "fake-adb")
    monkeypatch.setenv("PATH", fake.search_path)
    monkeypatch.setattr("runtime_py.adb.connection._POLL_S", 0.001)
    return fake
