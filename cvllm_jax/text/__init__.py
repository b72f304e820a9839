"""Text and tokens: tokenizers, chat templates and incremental detokenization."""

from cvllm_jax.text.chat_template import ChatTemplate
from cvllm_jax.text.detokenizer import Detokenizer
from cvllm_jax.text.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "Detokenizer", "Tokenizer"]
