"""Chat templates: from messages to the prompt that a model was trained on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from jinja2.exceptions import TemplateError, TemplateSyntaxError

from cvllm_jax.errors import ModelLoadError, TokenizationError
from cvllm_jax.text.chat_messages import plain_messages, plain_value
from cvllm_jax.text.control_text import ControlTextMask
from cvllm_jax.text.template_budget import TemplateLimitError, allot
from cvllm_jax.text.template_sandbox import TemplateRefusedError, compile_template

if TYPE_CHECKING:
    from jinja2.environment import Template

    from cvllm_jax.checkpoints.checkpoint import Checkpoint
    from cvllm_jax.text.tokenizer import Tokenizer

__all__ = ["ChatTemplate"]

MAX_FILE_BYTES = 1 << 24
TOOL_USE = "tool_use"


class ChatTemplate:
    """A model's chat template, in Jinja with the conventions of Hugging Face transformers.

    The template is not trusted: it runs in a sandbox that counts its work, and stops at a limit. Safe to use from
    several threads.

    Arguments:
        source: the template.
        special_tokens: what it knows as ``bos_token``, ``eos_token`` ...; by default the tokenizer's.
        tokenizer: needed by :meth:`encode`.
        tool_use_source: used instead of ``source`` when tools are given, for models that have two.
        response_template: how the model writes its answers, as newer checkpoints describe it; not used here.

    Raises:
        TokenizationError: the source is no valid template.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str] | None = None,
        tokenizer: Tokenizer | None = None,
        *,
        tool_use_source: str | None = None,
        response_template: Mapping[str, Any] | None = None,
    ) -> None:
        if special_tokens is None and tokenizer is not None:
            special_tokens = tokenizer.special_tokens
        self.source = source
        self.tool_use_source = tool_use_source
        self.response_template = response_template
        self.special_tokens = dict(special_tokens or {})
        self.tokenizer = tokenizer
        self._template = _compile(source)
        self._tool_use = self._template if tool_use_source is None else _compile(tool_use_source)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, tokenizer: Tokenizer) -> Self | None:
        """The template that comes with a checkpoint, or None where there is none.

        Raises:
            ModelLoadError: the files are damaged.
            TokenizationError: the template is no valid one.
        """
        gguf = checkpoint.gguf_metadata
        config = _config(checkpoint.path / "tokenizer_config.json") if gguf is None else {}
        sources = _from_folder(checkpoint.path, config) if gguf is None else _from_gguf(gguf)
        source = sources.get("default", sources.get(TOOL_USE))
        if source is None:
            return None
        answers = config.get("response_template")
        return cls(
            source,
            tokenizer=tokenizer,
            tool_use_source=sources.get(TOOL_USE),
            response_template=answers if isinstance(answers, dict) else None,
        )

    def render(
        self,
        /,
        messages: Iterable[Any],
        tools: Iterable[Any] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """The prompt as text.

        Arguments:
            messages: in the form of the OpenAI API, dictionaries or objects with ``model_dump``.
            tools: likewise; none and an empty list are the same.
            add_generation_prompt: end with what begins the assistant's answer.
            kwargs: further variables of the template (``enable_thinking``, ``documents`` ...). ``strftime_now``
                replaces the clock.

        Raises:
            TokenizationError: the template refuses the messages, fails, or goes over a limit.
        """
        return self._run(_inputs(messages, tools, kwargs), add_generation_prompt)

    def encode(
        self,
        /,
        messages: Iterable[Any],
        tools: Iterable[Any] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> list[int]:
        """The prompt as token ids.

        Control tokens are those that the template itself writes; whatever spells one in messages, tools or
        ``kwargs`` (but for ``bos_token`` and the like) is text. No BOS token is added to what the template writes.

        Arguments and errors are those of :meth:`render`.
        """
        if self.tokenizer is None:
            raise TokenizationError("this chat template has no tokenizer to encode with")
        inputs = _inputs(messages, tools, kwargs)
        # Whoever replaces bos_token wants that token.
        named = {name: value for name, value in inputs.items() if name.endswith("_token")}
        masked, unmask = self._mask.mask({name: value for name, value in inputs.items() if name not in named})
        return self.tokenizer.encode_masked(self._run(masked | named, add_generation_prompt), unmask)

    @cached_property
    def _mask(self) -> ControlTextMask:
        assert self.tokenizer is not None
        return ControlTextMask(self.tokenizer.control_tokens.values())

    def _run(self, inputs: Mapping[str, Any], add_generation_prompt: bool) -> str:
        template = self._tool_use if inputs["tools"] else self._template
        variables = {**self.special_tokens, **inputs, "add_generation_prompt": add_generation_prompt}
        return _guarded(lambda: _render(template, variables))


def _inputs(
    messages: Iterable[Any], tools: Iterable[Any] | None, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """What a caller gives to a template, as plain values by the names of the template's variables."""
    inputs: dict[str, Any] = {"documents": None}
    for name, value in kwargs.items():
        inputs[name] = value if name == "strftime_now" and callable(value) else plain_value(value, name)
    inputs["messages"] = plain_messages(messages)
    inputs["tools"] = None if tools is None else plain_value(list(tools), "tools") or None
    return inputs


def _render(template: Template, variables: dict[str, Any]) -> str:
    # Not template.render: that rebuilds the traceback of an error, which nobody will see.
    with allot():
        context = template.new_context(variables)
        return template.environment.concat(template.root_render_func(context))


def _compile(source: str) -> Template:
    if not isinstance(source, str):
        raise TokenizationError(f"a chat template must be a string, not a {type(source).__name__}")
    return _guarded(lambda: compile_template(source))


def _guarded[T](work: Callable[[], T]) -> T:
    """Turn whatever a template may raise into one sentence."""
    try:
        return work()
    except TokenizationError:
        raise
    except TemplateRefusedError as error:
        message = f"the chat template refuses these messages: {_one_line(error)}"
    except TemplateLimitError as error:
        message = f"the chat template was stopped because {_one_line(error)}"
    except TemplateSyntaxError as error:
        message = f"the chat template has an error in line {error.lineno}: {_one_line(error)}"
    except RecursionError:
        message = "the chat template was stopped because it is nested too deeply"
    except MemoryError:
        message = "the chat template was stopped because it needs too much memory"
    except TemplateError as error:
        message = f"the chat template failed because {_one_line(error)}"
    except Exception as error:  # a template can run into any error of Python's
        message = f"the chat template failed with a {type(error).__name__}: {_one_line(error)}"
    raise TokenizationError(message, param="messages")


def _one_line(error: BaseException) -> str:
    text = error.message if isinstance(error, TemplateError) else str(error)
    words = " ".join((text or type(error).__name__).split())
    return words if len(words) <= 300 else words[:299] + "…"


def _from_gguf(path: Path) -> dict[str, str]:
    from cvllm_jax.checkpoints.gguf import GgufFile

    with GgufFile(path) as file:
        found = {
            "default": file.metadata.get("tokenizer.chat_template"),
            TOOL_USE: file.metadata.get(f"tokenizer.chat_template.{TOOL_USE}"),
        }
    return {name: source for name, source in found.items() if isinstance(source, str)}


def _from_folder(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name, from the files where transformers keeps them."""
    of_images = folder / "chat_template.json"  # folders that read images too may have it there alone
    sources = _from_config(_config(of_images), of_images) | _from_config(config, folder / "tokenizer_config.json")
    for name, path in (
        ("default", folder / "chat_template.jinja"),
        (TOOL_USE, folder / "additional_chat_templates" / f"{TOOL_USE}.jinja"),
    ):
        if path.is_file():
            sources[name] = _read(path)
    return sources


def _config(path: Path) -> dict[str, Any]:
    """A ``tokenizer_config.json`` or ``chat_template.json``; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"cannot read {path}: {_one_line(error)}") from None
    return config if isinstance(config, dict) else {}


def _from_config(config: Mapping[str, Any], path: Path) -> dict[str, str]:
    template = config.get("chat_template")
    if template is None:
        return {}
    entries = template if isinstance(template, list) else [{"name": "default", "template": template}]
    sources = {}
    for entry in entries:
        match entry:
            case {"name": str(name), "template": str(source)}:
                sources[name] = source
            case _:
                raise ModelLoadError(f"chat_template in {path} must be a string, or a list of names with templates")
    return sources


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ModelLoadError(f"{path} has more than {MAX_FILE_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"cannot read {path}: {_one_line(error)}") from None
