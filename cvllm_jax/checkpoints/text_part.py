"""The language model inside a folder that reads images too: its configuration and the names of its weights.

Only what generates text is loaded; what encodes images is left on disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cvllm_jax.errors import ModelLoadError

__all__ = ["text_config", "text_tensor"]

#: Architectures of images and text, each with that of its language model.
_LANGUAGE_MODELS = {
    "Gemma3ForConditionalGeneration": "Gemma3ForCausalLM",
    "Gemma4ForConditionalGeneration": "Gemma4ForCausalLM",
    "Llama4ForConditionalGeneration": "Llama4ForCausalLM",
    "Mistral3ForConditionalGeneration": "MistralForCausalLM",
    "Qwen3_5ForConditionalGeneration": "Qwen3_5ForCausalLM",
    "Qwen3_5MoeForConditionalGeneration": "Qwen3_5MoeForCausalLM",
}
#: What such folders put before the names of the language model's tensors, and what ours have.
_PREFIXES = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
_NOT_TEXT = (
    "vision_model.", "vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.",
    "model.visual.", "model.audio_tower.", "model.embed_vision.", "model.embed_audio.",
)  # fmt: skip


def text_config(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The configuration of the language model; None for folders of text alone.

    Raises:
        ModelLoadError: the folder has no such configuration, or one of another architecture.
    """
    names = config.get("architectures")
    outer = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    inner = _LANGUAGE_MODELS.get(outer)
    if inner is None:
        return None
    text = config.get("text_config")
    if not isinstance(text, dict):
        raise ModelLoadError(f"{outer} needs a text_config in its config.json")
    kind, stem = text.get("model_type"), inner.removesuffix("ForCausalLM").lower().replace("_", "")
    if kind is not None and str(kind).replace("_", "") not in (stem, f"{stem}text"):
        raise ModelLoadError(f"{outer} with a language model of the type {kind!r:.80} is not supported")
    outside = {key: value for key, value in config.items() if not key.endswith("_config")}
    ends = {"eos_token_id": config["eos_token_id"]} if config.get("eos_token_id") is not None else {}
    return {**outside, **text, **ends, "architectures": [inner]}


def text_tensor(name: str) -> str | None:
    """A tensor's name in the language model; None for tensors that are no part of it."""
    if name.startswith(_NOT_TEXT):
        return None
    for theirs, ours in _PREFIXES:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name
