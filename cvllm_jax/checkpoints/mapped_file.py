"""Opening files that come with a model: as a read-only mapping, or whole if they are short."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

from cvllm_jax.errors import ModelLoadError

__all__ = ["map_file", "read_file"]


def map_file(path: Path) -> mmap.mmap:
    """The whole file as a read-only mapping.

    Raises:
        ModelLoadError: it cannot be opened, is no regular file, or is empty.
    """
    descriptor, size = _open(path)
    try:
        if size == 0:
            raise ModelLoadError(f"{path} is empty")
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelLoadError(f"cannot map {path}: {error.strerror}") from None
    finally:
        os.close(descriptor)


def read_file(path: Path, most: int) -> bytes:
    """The content of a file.

    Raises:
        ModelLoadError: it cannot be opened or read, is no regular file, or has more than ``most`` bytes.
    """
    descriptor, size = _open(path)
    with open(descriptor, "rb") as file:
        if size > most:
            raise ModelLoadError(f"{path} is over the limit of {most} bytes")
        try:
            return file.read(most)
        except OSError as error:
            raise ModelLoadError(f"cannot read {path}: {error.strerror}") from None


def _open(path: Path) -> tuple[int, int]:
    """A descriptor of a regular file, and its size."""
    try:
        # O_NONBLOCK: a named pipe must be refused below instead of waiting for a writer
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"cannot open {path}: {getattr(error, 'strerror', None) or error}") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise ModelLoadError(f"{path} is not a regular file")
    return descriptor, status.st_size
