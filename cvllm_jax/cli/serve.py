"""``cvllm-jax serve``: the OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import cvllm_jax
from cvllm_jax.cli.model import model_source
from cvllm_jax.cli.options import EngineOptions, parse_size, with_options
from cvllm_jax.cli.progress import ProgressBars
from cvllm_jax.errors import ConfigError

if TYPE_CHECKING:
    from cvllm_jax.engine.opening import AnyEngine
    from server.settings import ServerSettings

__all__ = ["curl_line", "serve"]


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def _server(help_text: str, **settings: Any) -> Any:
    return typer.Option(help=help_text, rich_help_panel="Server", **settings)


class McpApproval(StrEnum):
    ALWAYS = "always"
    NEVER = "never"


@with_options(engine=EngineOptions)
def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A GGUF file, a Hugging Face model folder, a hub id, or scripted:FILE (docs/scripted.md). "
            "Default: the demo model.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[str, _server("Address to listen on; 0.0.0.0 lets other machines reach the server.")] = "127.0.0.1",
    port: Annotated[int, _server("Port to listen on; 0 takes any free one.", min=0, max=65535)] = 8000,
    served_model_name: Annotated[
        str | None,
        _server("The name that clients use for the model. Default: the checkpoint's own.", show_default=False),
    ] = None,
    api_key: Annotated[
        str | None,
        _server(
            "Want this key from every client, as 'Authorization: Bearer KEY'. Default: no key.",
            envvar="CVLLM_API_KEY",
            show_default=False,
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        _server(
            "A web page's origin that may call the server from a browser, or * for all; may be repeated. "
            "Default: none.",
            show_default=False,
            metavar="ORIGIN",
        ),
    ] = None,
    max_body_size: Annotated[
        int, _server("Largest request body, for example 10MB.", parser=parse_size, metavar="SIZE")
    ] = "10MB",  # type: ignore[assignment]  # typer parses the default too
    tool_parser: Annotated[
        str,
        _server(
            "The format of the model's tool calls, such as hermes, llama3_json or mistral; auto finds it by the chat "
            "template, none finds no calls.",
            metavar="NAME",
        ),
    ] = "auto",
    reasoning_parser: Annotated[
        str,
        _server(
            "The markup of the model's reasoning, such as think; auto as above, none leaves it in the answer.",
            metavar="NAME",
        ),
    ] = "auto",
    store: Annotated[
        str | None,
        _server(
            "Where responses and conversations are kept: a file, postgresql://USER:PASSWORD@HOST/DATABASE, or "
            ":memory:. Default: a file in the user's data folder.",
            envvar="CVLLM_STORE",
            show_default=False,
            show_envvar=True,
        ),
    ] = None,
    store_max_size: Annotated[
        int, _server("The store drops its oldest entries beyond this size.", parser=parse_size, metavar="SIZE")
    ] = "4GB",  # type: ignore[assignment]
    store_max_responses: Annotated[int, _server("And beyond so many responses.", min=1)] = 10_000,
    store_max_days: Annotated[float, _server("And after so many days.", min=0.001)] = 30.0,
    mcp_config: Annotated[
        Path | None,
        _server(
            "A JSON file with 'mcpServers', whose tools requests may use by their servers' labels. Default: none; "
            "write --mcp-config mcp.json for the one in this folder.",
            show_default=False,
            metavar="FILE",
        ),
    ] = None,
    mcp_allow: Annotated[
        list[str] | None,
        _server(
            "A host of MCP servers that requests may name by a URL, such as mcp.example.com, *.example.com:443 or "
            "127.0.0.1:9000; may be repeated. Default: none.",
            show_default=False,
            metavar="HOST[:PORT]",
        ),
    ] = None,
    mcp_approval: Annotated[
        McpApproval, _server("Whether calls of MCP tools wait for approval where the request does not say.")
    ] = McpApproval.ALWAYS,
    strict: Annotated[
        bool,
        _server(
            "Refuse unknown parameters, namespaces, unknown kinds of tools, images and files in requests for responses."
        ),
    ] = False,
    drain_seconds: Annotated[float, _server("After Ctrl-C, running answers get so long to finish.", min=0.0)] = 3.0,
    log_level: Annotated[
        LogLevel, _server("How much the server logs; info has a line for each request.")
    ] = LogLevel.WARNING,
    *,
    engine: EngineOptions,
) -> None:
    """Serve a model over HTTP with OpenAI's API. Ctrl-C ends the server."""
    if api_key == "":
        raise typer.BadParameter("the API key is empty", param_hint="--api-key")
    _claim_server_package()
    from cvllm_jax.mcp import load_mcp_config
    from cvllm_jax.openai import AdapterConfig
    from cvllm_jax.responses.store import StoreLimits
    from server.app import create_app
    from server.run import bind, run
    from server.settings import ServerSettings

    AdapterConfig(tool_parser=tool_parser, reasoning_parser=reasoning_parser)  # says what is wrong before it loads
    source = model_source(model)
    settings = ServerSettings(
        served_model_name=served_model_name,
        api_key=api_key,
        cors_origins=tuple(cors_origin or ()),
        max_body_bytes=max_body_size,
        tool_parser=tool_parser,
        reasoning_parser=reasoning_parser,
        drain_seconds=drain_seconds,
        store=store if store is not None else _default_store(),
        store_limits=StoreLimits(
            max_responses=store_max_responses, max_bytes=store_max_size, max_age_secs=store_max_days * 24 * 3600
        ),
        mcp_servers=load_mcp_config(mcp_config) if mcp_config is not None else {},
        mcp_allow=tuple(mcp_allow or ()),
        mcp_approval=mcp_approval.value,
        strict=strict,
    )
    settings.responses_config()  # says what is wrong before the model loads, and so does the store
    asyncio.run(_try_store(settings))
    app = create_app(settings=settings)
    with ProgressBars() as bars:

        def report(stage: str, done: int, total: int) -> None:
            app.state.server.report(stage, done, total)
            bars(stage, done, total)

        config = engine.config(source, report)
        bound = bind(host, port)
        url = _url(host, bound.getsockname()[1])

        def load() -> AnyEngine:
            from cvllm_jax.engine.opening import open_engine

            return open_engine(config)

        def announce(loaded: AnyEngine) -> None:
            bars.close()
            name = app.state.server.model_name
            embeds = loaded.model_info().kind == "encoder"
            print(f"{name} is ready on {url} (Ctrl-C ends the server). Try it:\n")
            print(curl_line(url, name, has_key=api_key is not None, embeds=embeds), flush=True)

        loaded = run(app, bound, load, announce, log_level)
    if not loaded:
        # The interpreter crashes when it is taken down under a running compiler.
        sys.stdout.flush()
        os._exit(0)


def _default_store() -> str:
    """A file in the user's data folder, which is made if it is not there."""
    base = os.environ.get("XDG_DATA_HOME")
    folder = (Path(base) if base else Path.home() / ".local" / "share") / "cvllm-jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot make {folder} for the store: {error.strerror}; choose another with --store"
        ) from None
    return str(folder / "responses.sqlite3")


async def _try_store(settings: ServerSettings) -> None:
    from cvllm_jax.responses.store import ResponseStore

    await (await ResponseStore.open(settings.store, settings.store_limits)).aclose()


def curl_line(url: str, model: str, *, has_key: bool = False, embeds: bool = False) -> str:
    """A command for a POSIX shell that asks the server at ``url`` something."""
    question = "What is the capital of France?"
    body: dict[str, Any] = {"model": model}
    if embeds:
        path, body["input"] = "embeddings", question
    else:
        path, body["messages"], body["temperature"] = "chat/completions", [{"role": "user", "content": question}], 0
    key = " -H 'Authorization: Bearer YOUR_API_KEY'" if has_key else ""
    data = shlex.quote(json.dumps(body))
    return f"curl {url}/v1/{path} -H 'Content-Type: application/json'{key} -d {data}"


def _url(host: str, port: int) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _claim_server_package() -> None:
    """Make ``server`` mean the package that was installed beside cvllm_jax.

    It is a common name: a ``server.py`` of the user's in the working folder or on PYTHONPATH would be
    found first.
    """
    if importlib.util.find_spec("starlette") is None or importlib.util.find_spec("uvicorn") is None:
        raise ConfigError("the server needs starlette and uvicorn: pip install 'cvllm-jax[server]'")
    folder = Path(cvllm_jax.__file__).resolve().parent.parent / "server"
    spec = importlib.util.spec_from_file_location(
        "server", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["server"] = package
    spec.loader.exec_module(package)
