import pytest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CVLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
