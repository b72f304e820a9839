"""Downloading a model from the Hugging Face hub, into that library's own cache folder."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from cvllm_jax.checkpoints.folder import GET_SAFETENSORS
from cvllm_jax.config import Progress
from cvllm_jax.errors import ModelLoadError

__all__ = ["download"]

# Everything that is read, and nothing else: no pickles, no copies of the weights in other formats.
_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
    # of embedding models
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "*_Pooling/config.json",
)


def download(model: str, *, revision: str | None = None, progress: Progress | None = None) -> Path:
    """The folder with a model's files, downloaded as far as they are not there yet.

    A broken connection is taken up where it stopped; after an interrupted download, whole files are kept.
    Without a network, what was downloaded before is used.

    Arguments:
        model: ``org/name``.
        revision: branch, tag or commit; None is the main branch.
        progress: told of bytes, over all files that are being downloaded.

    Raises:
        ModelLoadError: the model or revision does not exist, needs permission, or cannot be reached.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise ModelLoadError(
            "downloading models needs the package huggingface_hub: run `pip install huggingface-hub`"
        ) from None
    at = f"{model} (revision {revision})" if revision else model
    try:
        folder = huggingface_hub.snapshot_download(
            model, revision=revision, allow_patterns=list(_FILES), tqdm_class=_progress_bar(model, progress)
        )
    except errors.GatedRepoError:
        reason = f"{model} is a gated model: accept its terms on the hub, then run `hf auth login`"
    except errors.RepositoryNotFoundError:
        reason = f"{model} is no file, no folder and no public hub model (private ones need `hf auth login`)"
    except errors.RevisionNotFoundError:
        reason = f"the hub model {model} has no revision {revision}"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        reason = f"{at} is neither a local path nor completely downloaded, and the hub cannot be reached"
    except Exception as error:  # network libraries raise types of their own; all mean the same to the user
        reason = f"downloading {at} failed: {type(error).__name__} {' '.join(str(error).split())[:200]}"
    else:
        names = {path.name for path in Path(folder).iterdir()} if Path(folder).is_dir() else set()
        if "config.json" not in names:
            reason = f"{at} has no config.json: of a model of GGUF files, download one and give its path"
        elif not names & {"model.safetensors", "model.safetensors.index.json"}:
            reason = f"{at} has no safetensors: {GET_SAFETENSORS}"
        else:
            return Path(folder)
    raise ModelLoadError(reason)


def _progress_bar(model: str, progress: Progress | None) -> type[Any]:
    """A tqdm class that reports to ``progress`` and writes nothing."""
    from tqdm.std import tqdm  # type: ignore[import-untyped]

    furthest = (0, 0)
    lock = threading.Lock()

    class Reporter(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            # a disabled bar does not count, and None disables it where standard error is no terminal
            super().__init__(*args, **{**kwargs, "disable": False, "leave": False, "file": _Nowhere()})

        def display(self, msg: str | None = None, pos: int | None = None) -> bool:
            nonlocal furthest
            if progress is not None and self.unit == "B":
                with lock:  # files are downloaded by several threads
                    # one bar counts bytes from the network, another bytes on disk: the one ahead is right
                    furthest = max(furthest, (int(self.n), int(self.total or 0)))
                    progress(f"downloading {model}", *furthest)
            return True

    return Reporter


class _Nowhere:
    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        return
