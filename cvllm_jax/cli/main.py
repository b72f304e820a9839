"""The console script."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import cvllm_jax
from cvllm_jax.cli.bench import bench
from cvllm_jax.cli.chat import chat
from cvllm_jax.cli.convert import convert
from cvllm_jax.cli.demo import demo
from cvllm_jax.cli.doctor import doctor
from cvllm_jax.cli.generate import generate
from cvllm_jax.cli.serve import serve
from cvllm_jax.errors import Error

__all__ = ["main"]

_app = typer.Typer(
    name="cvllm-jax",
    help="Run open language models with JAX.",
    epilog="CVLLM_DEBUG=1 in the environment shows tracebacks; CVLLM_CACHE names the cache folder.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (serve, chat, generate, convert, doctor, demo):
    _app.command()(_command)
_app.add_typer(bench)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"cvllm-jax {cvllm_jax.__version__}")
        raise typer.Exit


@_app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; an error is one line on standard error and exit status 1, wrong usage 2."""
    debug = os.environ.get("CVLLM_DEBUG", "0") not in ("", "0")
    try:
        _app(prog_name="cvllm-jax")
    except Error as error:
        if debug:
            raise
        _fail(str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        if debug:
            raise
        _fail(f"unexpected {type(error).__name__}: {error} (CVLLM_DEBUG=1 shows where)")


def _fail(message: str) -> None:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    raise SystemExit(1)
