"""How a checkpoint wants a text's vector made of its tokens' vectors: the files of sentence-transformers, or GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

from cvllm_jax.checkpoints.dense import GGUF_DENSE, Dense, read_dense
from cvllm_jax.checkpoints.folder import read_json, read_json_list
from cvllm_jax.errors import ModelLoadError

if TYPE_CHECKING:
    from cvllm_jax.checkpoints.checkpoint import TensorInfo

__all__ = ["Pooling", "PoolingMode", "Prompts", "base_model", "pooling_of_gguf", "read_pooling", "read_prompts"]

PoolingMode = Literal["mean", "cls", "max", "lasttoken", "mean_sqrt_len_tokens"]

# names of modes in 1_Pooling/config.json, old (flags) and new
_FLAGS: dict[str, PoolingMode] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
}

# what is below the head of models that embeddings are made with, where the name is not that of the whole less its end
_BASES = {"Gemma3ForCausalLM": "Gemma3TextModel"}
_GGUF_MODES: dict[int, PoolingMode] = {1: "mean", 2: "cls", 3: "lasttoken"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """From hidden states to one vector."""

    mode: PoolingMode = "mean"
    """What is taken over the tokens of a text, those that begin and end it included."""
    dense: tuple[Dense, ...] = ()
    """Layers that the vector goes through after that."""
    normalize: bool = False
    """Divide the vector by its length at the end."""
    max_tokens: int | None = None
    """The longest text that the model was made for, where that is less than its context."""
    lowercase: bool = False
    """Text is lowercased before it is tokenized, whatever the tokenizer does."""
    matryoshka: tuple[int, ...] = ()
    """Shorter sizes that the vector may be cut to (arXiv 2205.13147)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """What an embedding model wants before texts, for each use of its vectors."""

    by_name: Mapping[str, str]
    default: str | None = None
    """The name of the one for texts without another."""


def base_model(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a folder, which with a ``modules.json`` is of an embedding model.

    Such folders may still name the class with the head for tokens that the weights were trained with.
    """
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    if not name.endswith("ForCausalLM") or not (folder / "modules.json").is_file():
        return config
    return {**config, "architectures": [_BASES.get(name, f"{name.removesuffix('ForCausalLM')}Model")]}


def read_pooling(folder: Path, config: Mapping[str, Any]) -> Pooling:
    """What ``modules.json`` and the files that it names declare; without it, sentence-transformers' default.

    Arguments:
      config: the model's ``config.json``, which may name Matryoshka sizes.

    Raises:
      ModelLoadError: the files are damaged or ask for something that is not supported.
    """
    sizes = config.get("matryoshka_dimensions") or []
    if not isinstance(sizes, list) or not all(type(size) is int and size > 0 for size in sizes):
        raise ModelLoadError(f"{folder}: matryoshka_dimensions must be a list of sizes, not {str(sizes)[:80]}")
    path = folder / "modules.json"
    if not path.is_file():
        return Pooling(matryoshka=tuple(sizes))
    mode: PoolingMode | None = None
    dense: list[Dense] = []
    normalize = False
    for module in read_json_list(path):
        match module:
            case {"type": str(kind), "path": str(place)} if place != ".." and not set(place) & set("/\\:\0"):
                name = kind.rpartition(".")[2]
            case _:
                raise ModelLoadError(f"{path} must list modules, each with a type and the name of a folder")
        if name == "Pooling" and mode is None:
            mode = _mode(folder / place / "config.json")
        elif name == "Dense" and mode is not None and not normalize and place:
            dense.append(read_dense(folder, place))
        elif name == "Normalize":
            normalize = True
        elif name != "Transformer":
            raise ModelLoadError(
                f"{path} wants the module {name[:80]!r} at a place where it is not supported; after the model come "
                "one Pooling, any number of Dense and perhaps Normalize"
            )
    if mode is None:
        raise ModelLoadError(f"{path} names no Pooling, so the model gives a vector for each token and none for a text")
    max_tokens, lowercase = _limits(folder / "sentence_bert_config.json")
    return Pooling(
        mode=mode, dense=tuple(dense), normalize=normalize, max_tokens=max_tokens, lowercase=lowercase,
        matryoshka=tuple(sizes),
    )  # fmt: skip


def pooling_of_gguf(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo] = MappingProxyType({})) -> Pooling:
    """What a GGUF file declares; without it, the mean of all tokens.

    Whether vectors have the length 1 is not said in such files. They get it, as in llama.cpp's server.

    Raises:
      ModelLoadError: the file wants a vector for each token, or a score.
    """
    kind = config.get("pooling_type", 1)
    mode = _GGUF_MODES.get(kind) if type(kind) is int else None
    if mode is None:
        raise ModelLoadError(
            f"the pooling type {str(kind)[:80]} of a GGUF file is not supported; supported are "
            + ", ".join(f"{number} ({name})" for number, name in _GGUF_MODES.items())
        )
    shapes = {name: tensors[f"{name}.weight"].shape for name in GGUF_DENSE if f"{name}.weight" in tensors}
    if wrong := [name for name, shape in shapes.items() if len(shape) != 2]:
        raise ModelLoadError(f"{wrong[0]} of a GGUF file must be a matrix")
    dense = tuple(
        Dense(place=name, inputs=inputs, outputs=outputs, bias=False, activation="identity")
        for name, (outputs, inputs) in shapes.items()
    )
    return Pooling(mode=mode, dense=dense, normalize=True)


def read_prompts(folder: Path) -> Prompts:
    """The prompts of ``config_sentence_transformers.json``.

    Raises:
      ModelLoadError: they are no texts, or the default is none of them.
    """
    path = folder / "config_sentence_transformers.json"
    config = read_json(path) if path.is_file() else {}
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise ModelLoadError(f"{path}: prompts must be an object of names and texts, not {str(prompts)[:80]}")
    if default is not None and default not in prompts:
        raise ModelLoadError(f"{path}: default_prompt_name is {str(default)[:80]!r}, which is none of its prompts")
    return Prompts(by_name=prompts, default=default)


def _mode(path: Path) -> PoolingMode:
    config = read_json(path)
    if config.get("include_prompt") not in (None, True):
        raise ModelLoadError(f"{path} leaves prompts out of the pooling (include_prompt), which is not supported")
    named = config.get("pooling_mode")
    if named is None:
        modes = [mode for flag, mode in _FLAGS.items() if config.get(flag) is True]
        unknown = [key for key, on in config.items() if key.startswith("pooling_mode_") and on and key not in _FLAGS]
    else:
        wanted = named if isinstance(named, list) else [named]
        modes = [mode for mode in get_args(PoolingMode) if mode in wanted]
        unknown = [str(mode) for mode in wanted if mode not in modes]
    if len(modes) != 1 or unknown:
        raise ModelLoadError(
            f"{path} must turn on exactly one of the modes {', '.join(get_args(PoolingMode))}, "
            f"and it has {', '.join([*modes, *unknown])[:200] or 'none'}"
        )
    return modes[0]


def _limits(path: Path) -> tuple[int | None, bool]:
    if not path.is_file():
        return None, False
    config = read_json(path)
    most, lower = config.get("max_seq_length"), config.get("do_lower_case", False)
    if not (most is None or (type(most) is int and most > 0)) or not isinstance(lower, bool):
        raise ModelLoadError(f"{path}: max_seq_length must be a number of tokens, and do_lower_case true or false")
    return most, lower

