from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("CVLLM_CACHE", str(folder))
    monkeypatch.delenv("CVLLM_CACHE_LIMIT_GB", raising=False)
    return folder
