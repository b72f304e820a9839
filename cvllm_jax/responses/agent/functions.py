"""Python functions as an agent's tools."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import ArgsKwargs, ErrorDetails, to_json

from cvllm_jax.errors import ConfigError, Error, shown
from cvllm_jax.openai.types import FunctionDefinition, Tool, ToolCall
from cvllm_jax.responses.agent.calls import failed
from cvllm_jax.responses.agent.types import AgentTool, ToolOutcome

__all__ = ["function_tool"]

_MAX_THREADS = 32

_logger = logging.getLogger(__name__)


def function_tool(function: Callable[..., Any]) -> AgentTool:
    """A tool that calls ``function`` with what the model wrote, checked against the function's signature.

    Its name and description are the function's name and docstring, and its parameters the JSON schema of the
    annotations, which may be ``Annotated[str, Field(description="...")]``. A coroutine function runs in the event
    loop, any other in a thread, which goes on where its result is no longer waited for. Results that are no text are
    given as JSON. An exception is logged, and the model is told its type and message.

    Raises ConfigError for a function that no JSON object can be the arguments of.
    """
    name = getattr(function, "__name__", type(function).__name__)
    try:
        signature: TypeAdapter[Any] = TypeAdapter(function)  # type: ignore[arg-type]  # pydantic takes functions, too
        schema = signature.json_schema()
        if schema.get("type") != "object":
            raise TypeError("it has parameters without a name")
        definition = FunctionDefinition(name).with_parameters(schema)
    except (PydanticUserError, ValidationError, TypeError, NameError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{shown(name)} cannot be a tool: {reason}", param="tools") from error
    if description := inspect.getdoc(function):
        definition = definition.with_description(description)

    async def run(call: ToolCall) -> ToolOutcome:
        arguments = ArgsKwargs((), dict(call.to_mcp_call().arguments))
        try:
            if inspect.iscoroutinefunction(function):
                result = await signature.validate_python(arguments)
            else:
                result = await _in_thread(functools.partial(signature.validate_python, arguments))
            return ToolOutcome(text=result if isinstance(result, str) else to_json(result).decode())
        except Error as error:
            return failed(str(error))
        except ValidationError as error:
            return failed("; ".join(map(_problem, error.errors(include_url=False))))
        except Exception as error:
            _logger.warning("the tool %s raised an exception, which the model is told of", name, exc_info=True)
            return failed(f"{type(error).__name__}: {error}")

    return AgentTool(definition=Tool(function=definition), run=run)


def _problem(error: ErrorDetails) -> str:
    place = ".".join(map(str, error["loc"]))
    return f"{place}: {error['msg']}" if place else error["msg"]


async def _in_thread[T](work: Callable[[], T]) -> T:
    """As asyncio.to_thread, but not in the threads that prepare requests: tools may hold them for long."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_threads(), context.run, work)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="tool")
