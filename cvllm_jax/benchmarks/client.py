"""The measuring client: the same for every server, so that what it costs falls on all alike."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cvllm_jax.benchmarks.workload import ChatRequest
from cvllm_jax.errors import ConfigError

__all__ = ["Outcome", "Target", "measure"]

#: Of each answer so many characters are kept, to see that it is text.
KEPT_TEXT = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server.

    Attributes:
      url: where its OpenAI API is, as in ``http://127.0.0.1:8000/v1``.
      model: the name to ask for; None for the first that ``/models`` lists.
      api_key: sent as a bearer token.
      exact_lengths: send ``ignore_eos``, which vLLM, SGLang, llama.cpp and cvllm-jax know: every answer then has as
        many tokens as the workload says. Servers that refuse unknown fields need it off.
      timeout: seconds without a byte after which a request has failed.
    """

    url: str
    model: str | None = None
    api_key: str | None = None
    exact_lengths: bool = True
    timeout: float = 600.0


@dataclass(slots=True)
class Outcome:
    """What became of one request; times in seconds."""

    arrival: float
    """When it was due, after the start of the run. Waiting for a free place (``concurrency``) comes after."""
    sent: float = 0.0
    """When it was sent, after the start of the run."""
    texts: list[float] = field(default_factory=list)
    """When each piece of text came, after the request was sent."""
    duration: float = 0.0
    """From sending to the end of the stream."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    text: str = ""
    """How the answer begins."""
    error: str | None = None


async def measure(
    target: Target,
    requests: Sequence[ChatRequest],
    *,
    concurrency: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[list[Outcome], float]:
    """Send every request when it is due; what became of each, and the seconds from the first to the last.

    Raises:
      ConfigError: nothing answers at the target, or it lists no model.
    """
    import httpx2

    headers = {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}
    places = asyncio.Semaphore(concurrency) if concurrency else None
    # a connection each: a server may close an idle one while the next request is on its way
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    done = 0
    async with httpx2.AsyncClient(
        base_url=target.url.rstrip("/") + "/", headers=headers, timeout=target.timeout, limits=limits
    ) as client:
        model = target.model or await _first_model(client, target)
        start = time.perf_counter()

        async def one(request: ChatRequest) -> Outcome:
            nonlocal done
            await asyncio.sleep(request.arrival - (time.perf_counter() - start))
            outcome = Outcome(request.arrival)
            if places is None:
                await _ask(client, target, model, request, outcome, start)
            else:
                async with places:
                    await _ask(client, target, model, request, outcome, start)
            done += 1
            progress(done)
            return outcome

        outcomes = await asyncio.gather(*map(one, requests))
        return outcomes, time.perf_counter() - start


async def _first_model(client: Any, target: Target) -> str:
    import httpx2

    try:
        response = await client.get("models")
        response.raise_for_status()
        return str(response.json()["data"][0]["id"])
    except (httpx2.HTTPError, ValueError, LookupError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"no model can be asked for at {target.url}: {reason}", param="url") from error


async def _ask(
    client: Any, target: Target, model: str, request: ChatRequest, outcome: Outcome, run_start: float
) -> None:
    import httpx2

    body = {
        "model": model, "messages": request.messages, "max_tokens": request.output_tokens, "temperature": 0.0,
        "stream": True, "stream_options": {"include_usage": True},
        **({"ignore_eos": True} if target.exact_lengths else {}),
    }  # fmt: skip
    begin = time.perf_counter()
    outcome.sent = begin - run_start
    try:
        async with client.stream("POST", "chat/completions", json=body) as response:
            if response.status_code != 200:
                answer = (await response.aread()).decode(errors="replace")
                outcome.error = f"status {response.status_code}: {answer[:KEPT_TEXT]}"
                return
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    _take(json.loads(line[6:]), outcome, time.perf_counter() - begin)
    except (httpx2.HTTPError, ValueError) as error:
        outcome.error = f"{type(error).__name__}: {error}"
    finally:
        outcome.duration = time.perf_counter() - begin
    if outcome.error is None and not outcome.output_tokens:
        outcome.error = "the stream ended without a usage, so nothing says how many tokens it had"


def _take(event: dict[str, Any], outcome: Outcome, moment: float) -> None:
    """One event of a stream: text, reasoning, the usage at the end, or an error."""
    if event.get("error") is not None:
        outcome.error = json.dumps(event["error"])[:KEPT_TEXT]
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        text = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or ""
        if text:
            outcome.texts.append(moment)
            outcome.text = (outcome.text + text)[:KEPT_TEXT]
    if usage := event.get("usage"):
        outcome.prompt_tokens = usage.get("prompt_tokens") or 0
        outcome.output_tokens = usage.get("completion_tokens") or 0
        outcome.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
