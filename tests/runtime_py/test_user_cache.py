from runtime_py.user_cache import processor, user_cache


def test_the_folder_follows_the_platform(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache("litert") == tmp_path / "gemma-export" / "litert"


def test_a_processor_is_told_by_more_than_its_family():
    assert len(processor()) > 10
