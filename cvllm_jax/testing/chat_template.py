"""The chat template of a scripted model, which chooses what will be said."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cvllm_jax.testing.script import Script
from cvllm_jax.testing.vocabulary import line_token
from cvllm_jax.text import ChatTemplate, Tokenizer
from cvllm_jax.text.chat_messages import plain_messages

__all__ = ["ScriptedChatTemplate"]


class ScriptedChatTemplate(ChatTemplate):
    """A chat template that ends a prompt with the token of the line that answers it.

    The token is in what :meth:`encode` gives alone and decodes to nothing, so whoever looks at how a prompt ends sees
    what the template wrote. A prompt without the beginning of an answer names no line.
    """

    def __init__(self, script: Script, tokenizer: Tokenizer) -> None:
        super().__init__(script.template, tokenizer=tokenizer)
        self._script = script

    def encode(
        self,
        /,
        messages: Iterable[Any],
        tools: Iterable[Any] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> list[int]:
        plain = plain_messages(messages)
        prompt = super().encode(plain, tools, add_generation_prompt, **kwargs)
        return [*prompt, line_token(self._script.line_for(plain))] if add_generation_prompt else prompt
