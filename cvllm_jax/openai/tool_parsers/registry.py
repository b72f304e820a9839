"""Which parser a model needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cvllm_jax.errors import ConfigError
from cvllm_jax.openai.tool_parsers.deepseek import DeepSeekV3Parser
from cvllm_jax.openai.tool_parsers.glm45 import Glm45Parser
from cvllm_jax.openai.tool_parsers.gpt_oss import GptOssParser
from cvllm_jax.openai.tool_parsers.granite import GraniteParser
from cvllm_jax.openai.tool_parsers.hermes import HermesParser
from cvllm_jax.openai.tool_parsers.llama3 import Llama3JsonParser
from cvllm_jax.openai.tool_parsers.minimax_m2 import MinimaxM2Parser
from cvllm_jax.openai.tool_parsers.mistral import MistralParser
from cvllm_jax.openai.tool_parsers.parser import ToolParser
from cvllm_jax.openai.tool_parsers.phi4_mini import Phi4MiniParser
from cvllm_jax.openai.tool_parsers.pythonic import PythonicParser
from cvllm_jax.openai.tool_parsers.qwen3_coder import Qwen3CoderParser
from cvllm_jax.openai.tool_parsers.response_template import ResponseTemplateParser

__all__ = ["TOOL_PARSERS", "detect_tool_parser", "get_tool_parser"]

TOOL_PARSERS: Mapping[str, type[ToolParser]] = {
    parser.name: parser
    for parser in (
        HermesParser,
        Llama3JsonParser,
        PythonicParser,
        MistralParser,
        Qwen3CoderParser,
        DeepSeekV3Parser,
        GraniteParser,
        Phi4MiniParser,
        Glm45Parser,
        MinimaxM2Parser,
        GptOssParser,
    )
}
"""The parsers by name, but for the one that a checkpoint's ``response_template`` describes."""

_ALIASES = {
    "qwen": "hermes",
    "granite4": "hermes",
    "llama4_json": "llama3_json",
    "llama4_pythonic": "pythonic",
    "qwen3_xml": "qwen3_coder",
    "deepseek_v31": "deepseek_v3",
    "phi4_mini_json": "phi4_mini",
    "glm47": "glm45",
    "openai": "gpt_oss",
    "harmony": "gpt_oss",
}

_BY_MARKUP: tuple[tuple[tuple[str, ...], str | None], ...] = (
    (("<|channel|>", "<|message|>"), "gpt_oss"),
    (("<function=", "<parameter="), "qwen3_coder"),
    (("<｜tool▁call▁begin｜>",), "deepseek_v3"),
    (("[TOOL_CALLS]",), "mistral"),
    (("functools",), "phi4_mini"),
    (("<|tool|>",), "phi4_mini"),
    (("<|tool_call|>",), "granite"),
    (("<minimax:tool_call>", "<invoke name="), "minimax_m2"),
    (("<tool_call>", "<arg_key>"), "glm45"),
    (("<tool_call>",), "hermes"),
    (("tools", "python list"), "pythonic"),
    (("tools", "tool_call.name + '('"), "pythonic"),
    (("tools", '{"name": function name, "parameters":'), "llama3_json"),
    (("tools", '[{"name": "tool_call_name", "arguments":'), "llama3_json"),
)
"""What stands in a chat template and the parser that it tells of; the first entry of which all parts are there."""

_BY_ARCHITECTURE = {
    "GptOssForCausalLM": "gpt_oss",
    "DeepseekV3ForCausalLM": "deepseek_v3",
    "GraniteForCausalLM": "granite",
    "GraniteMoeForCausalLM": "granite",
    "GraniteMoeHybridForCausalLM": "hermes",
    "LlamaForCausalLM": "llama3_json",
    "MistralForCausalLM": "mistral",
    "Mistral3ForConditionalGeneration": "mistral",
    "Qwen2ForCausalLM": "hermes",
    "Qwen2MoeForCausalLM": "hermes",
    "Qwen3ForCausalLM": "hermes",
    "Qwen3MoeForCausalLM": "hermes",
    "Qwen3NextForCausalLM": "hermes",
}


def get_tool_parser(
    name: str = "auto",
    *,
    chat_template: str | None = None,
    architecture: str | Mapping[str, Any] | None = None,
    response_template: Mapping[str, Any] | None = None,
) -> ToolParser:
    """The tool parser called ``name``.

    ``"auto"`` takes the one that :func:`detect_tool_parser` finds for ``chat_template`` and ``architecture``, and
    where that finds none the checkpoint's own ``response_template``, which the name ``"response_template"`` asks for.

    Raises:
        ConfigError: there is no such parser, or ``auto`` finds none.
        ModelLoadError: the ``response_template`` is malformed or needs what is not supported.
    """
    if name == "auto":
        detected = detect_tool_parser(chat_template, architecture)
        name = detected or ("response_template" if response_template is not None else name)
    if name == "response_template" and response_template is not None:
        return ResponseTemplateParser(response_template)
    parser = TOOL_PARSERS.get(_ALIASES.get(name, name))
    if parser is not None:
        return parser()
    names = ", ".join((*TOOL_PARSERS, "response_template"))
    if name == "auto":
        reason = f"no known tool call format in the model's chat template; name one of {names}"
    elif name == "response_template":
        reason = "the checkpoint has no response_template in its tokenizer_config.json"
    else:
        reason = f"there is no tool parser {name!r}; there are auto, {names}"
    raise ConfigError(reason, param="tool_parser")


def detect_tool_parser(chat_template: str | None, architecture: str | Mapping[str, Any] | None = None) -> str | None:
    """The name of the parser for a model's chat template; None for one without tools or with an unknown format.

    The markup that the template itself writes decides. ``architecture``, the first of ``architectures`` in
    ``config.json`` or that whole configuration, decides only for a template that takes tools without such markup.
    """
    if not chat_template:
        return None
    for parts, name in _BY_MARKUP:
        if all(part in chat_template for part in parts):
            return name
    if isinstance(architecture, Mapping):
        names = architecture.get("architectures")
        architecture = names[0] if isinstance(names, list) and names else None
    return _BY_ARCHITECTURE.get(architecture or "") if "tools" in chat_template else None
