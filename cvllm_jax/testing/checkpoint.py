"""A script as a checkpoint: the tokenizer, the template and the weights that make the model say it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cvllm_jax.checkpoints.checkpoint import Checkpoint
from cvllm_jax.checkpoints.dummy import NoWeights
from cvllm_jax.errors import ModelLoadError, TokenizationError
from cvllm_jax.testing.chat_template import ScriptedChatTemplate
from cvllm_jax.testing.model import CONTEXT_LENGTH
from cvllm_jax.testing.preference import preference
from cvllm_jax.testing.script import Script, read_script
from cvllm_jax.testing.vocabulary import MAX_LINES, scripted_tokenizer
from cvllm_jax.text import Tokenizer

__all__ = ["SCHEME", "ScriptedCheckpoint", "open_scripted"]

#: What a model path begins with that names a script.
SCHEME = "scripted:"

MIN_TABLE = 1 << 12


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedCheckpoint(Checkpoint):
    """A checkpoint that brings along what others have in files."""

    tokenizer: Tokenizer
    chat_template: ScriptedChatTemplate
    weights: Mapping[str, np.ndarray]
    """The parameters of :class:`cvllm_jax.testing.model.Scripted` by name."""


def open_scripted(source: str) -> ScriptedCheckpoint:
    """The checkpoint that ``scripted:FILE`` names; see :func:`cvllm_jax.testing.script.read_script`.

    Raises:
      ModelLoadError: in one sentence, what is wrong with the file.
    """
    name = source.removeprefix(SCHEME)
    if not name:
        raise ModelLoadError(f"{SCHEME} names no script; write {SCHEME}FILE")
    path = Path(name).expanduser()
    script = read_script(path)
    try:
        tokenizer = scripted_tokenizer(script)
        chat_template = ScriptedChatTemplate(script, tokenizer)
    except TokenizationError as error:
        raise ModelLoadError(f"the script {path} cannot be used: {error}") from None
    weights = _weights(script, tokenizer, path)
    assert tokenizer.eos_token_id is not None
    return ScriptedCheckpoint(
        name=path.stem,
        path=path,
        format="scripted",
        config={"architectures": ["ScriptedForCausalLM"], "table_size": len(weights["table"])},
        eos_token_ids=(tokenizer.eos_token_id,),
        generation_defaults={},
        tensors={},
        fingerprint="scripted " + hashlib.blake2b(repr(script.lines).encode(), digest_size=16).hexdigest(),
        _weights=NoWeights(),
        tokenizer=tokenizer,
        chat_template=chat_template,
        weights=weights,
    )


def _weights(script: Script, tokenizer: Tokenizer, path: Path) -> dict[str, np.ndarray]:
    lines = [_line(text, tokenizer, _where(index, path)) for index, text in enumerate(script.lines)]
    lengths = np.zeros(MAX_LINES, np.int32)
    lengths[: len(lines)] = [len(line) for line in lines]
    spoken = np.concatenate(lines)
    # rounded up, so that a script that changes a little needs no new compilation
    table = np.zeros(max(MIN_TABLE, 1 << len(spoken).bit_length()), np.int32)
    table[: len(spoken)] = spoken
    end = tokenizer.eos_token_id
    assert end is not None
    return {
        "table": table,
        "starts": np.cumsum(lengths, dtype=np.int32) - lengths,
        "lengths": lengths,
        "end": np.asarray([end], np.int32),
        "preference": preference(end),
    }


def _line(text: str, tokenizer: Tokenizer, where: str) -> np.ndarray:
    try:
        tokens = np.asarray(tokenizer.encode(text, allow_special=True), np.int32)
    except TokenizationError as error:
        raise ModelLoadError(f"{where} cannot be said: {error}") from None
    if len(tokens) >= CONTEXT_LENGTH:
        raise ModelLoadError(f"{where} has {len(tokens)} tokens; the context has {CONTEXT_LENGTH}")
    return tokens


def _where(line: int, path: Path) -> str:
    return f"rule {line - 1} of the script {path}" if line else f"the default of the script {path}"
