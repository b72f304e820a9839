"""Mapping a file of weights into memory, read-only."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

from cvllm_jax.errors import ModelLoadError

__all__ = ["map_file"]


def map_file(path: Path) -> mmap.mmap:
    """The whole file as a read-only mapping.

    Raises:
        ModelLoadError: it cannot be opened, is no regular file, or is empty.
    """
    try:
        # O_NONBLOCK: a named pipe must be refused below instead of waiting for a writer
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"cannot open {path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ModelLoadError(f"{path} is not a regular file")
        if status.st_size == 0:
            raise ModelLoadError(f"{path} is empty")
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelLoadError(f"cannot map {path}: {error.strerror}") from None
    finally:
        os.close(descriptor)
