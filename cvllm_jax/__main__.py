"""``python -m cvllm_jax``: the same as the ``cvllm-jax`` command."""

from __future__ import annotations

import sys
from pathlib import Path


def _leave_working_folder() -> None:
    """Take off sys.path the working folder that ``-m`` puts first.

    A user's ``server.py`` there is not ours. It stays if this package itself is imported from there.
    """
    if sys.flags.safe_path or not sys.path:
        return
    home = Path(__file__).resolve().parent.parent
    if Path(sys.path[0]).resolve() != home:
        del sys.path[0]


if __name__ == "__main__":
    _leave_working_folder()
    from cvllm_jax.cli.main import main

    main()
