"""``cvllm-jax bench``: how fast a server or an engine is."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cvllm_jax.cli.model import load_engine
from cvllm_jax.cli.options import EngineOptions, with_options
from cvllm_jax.errors import Error

if TYPE_CHECKING:
    from cvllm_jax.benchmarks import Outcome, Summary
    from cvllm_jax.benchmarks.resources import Usage

__all__ = ["bench"]

bench = typer.Typer(name="bench", help="Measure how fast a server or an engine is.", no_args_is_help=True)

Out = Annotated[
    Path | None, typer.Option("--json", help="Write figures and every sample here.", show_default=False, metavar="FILE")
]


class BenchError(Error):
    """Nothing could be measured."""


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is no number from 1 on")
    return int(text)


def _counts(text: str) -> tuple[int, ...]:
    """``"512,2048"``; nothing for none."""
    return tuple(_positive(part.strip()) for part in text.split(",") if part.strip())


def _batches(text: str) -> tuple[tuple[int, int], ...]:
    """``"1@512,8@64"``: sequences @ depth."""
    pairs = []
    for part in filter(None, map(str.strip, text.split(","))):
        batch, at, depth = part.partition("@")
        if not at:
            raise typer.BadParameter(f"{part!r} is not SEQUENCES@DEPTH, as in 8@64")
        pairs.append((_positive(batch), _positive(depth)))
    return tuple(pairs)


@bench.command()
def serve(
    url: Annotated[str, typer.Option(help="The server's OpenAI API.")] = "http://127.0.0.1:8000/v1",
    model: Annotated[
        str | None, typer.Option(help="Model to ask for. Default: the first that it lists.", show_default=False)
    ] = None,
    requests: Annotated[int, typer.Option(help="Chats to send.", min=1)] = 64,
    lengths: Annotated[
        str,
        typer.Option(
            help="PROMPT:OUTPUT in tokens, as in 512:128; or chats: lengths as in conversations (means 161 and 338).",
            metavar="chats|PROMPT:OUTPUT",
        ),
    ] = "256:64",
    rate: Annotated[
        float | None,
        typer.Option(help="Arrivals a second, at random. Default: all at the start.", show_default=False),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(help="Chats that may run at the same time. Default: any number.", show_default=False, min=1),
    ] = None,
    shared_prefix: Annotated[
        int, typer.Option(help="Tokens of a system message that all chats begin with, about.", min=0)
    ] = 0,
    seed: Annotated[int, typer.Option(help="Draws other chats and arrivals.")] = 0,
    warm_up: Annotated[int, typer.Option(help="Chats to send before, which are not counted.", min=0)] = 4,
    first_token_limit: Annotated[
        float | None,
        typer.Option(help="Goodput: milliseconds to the first token at most.", show_default=False, metavar="MS"),
    ] = None,
    token_limit: Annotated[
        float | None,
        typer.Option(help="Goodput: milliseconds for each further token at most.", show_default=False, metavar="MS"),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="OPENAI_API_KEY", help="Sent as a bearer token.", show_default=False)
    ] = None,
    exact_lengths: Annotated[
        bool, typer.Option(help="Send ignore_eos, so that every answer has its full length.")
    ] = True,
    pid: Annotated[
        int | None,
        typer.Option(help="The server's process on this machine: its memory is watched.", show_default=False),
    ] = None,
    out: Out = None,
) -> None:
    """Send chats to a server that speaks OpenAI's Chat Completions, and report latencies and throughput."""
    from cvllm_jax.benchmarks import Lengths, Limits, Target, Workload, chat_requests, measure, summarize
    from cvllm_jax.benchmarks.resources import watch_usage

    workload = Workload(
        requests=requests, lengths=Lengths.parse(lengths), rate=rate, concurrency=concurrency,
        shared_prefix=shared_prefix, seed=seed,
    )  # fmt: skip
    target = Target(url=url, model=model, api_key=api_key, exact_lengths=exact_lengths)
    if warm_up:
        # other chats, or the prefix cache would know them
        before = Workload(requests=warm_up, lengths=workload.lengths, seed=seed + 1)
        asyncio.run(measure(target, chat_requests(before)))
    with watch_usage(pid) as usage:
        outcomes, duration = asyncio.run(measure(target, chat_requests(workload), concurrency=concurrency))
    limits = Limits(first_token_limit, token_limit)
    summary = summarize(outcomes, duration, limits, held_back=concurrency is not None)
    if out is not None:
        _write(out, "serve", {"workload": workload, "url": url}, summary.as_dict(), outcomes, usage)
    _print_serving(summary, usage, limits != Limits())
    failed = [outcome.error for outcome in outcomes if outcome.error is not None]
    if failed:
        raise BenchError(f"{len(failed)} of {len(outcomes)} chats failed, the first with: {failed[0]}")


@bench.command()
@with_options(engine=EngineOptions)
def engine(
    model: Annotated[
        str | None, typer.Argument(help="A GGUF file, a model folder or a hub id. Default: the demo model.")
    ] = None,
    prefill: Annotated[str, typer.Option(help="Lengths of prompts, in tokens.", metavar="N,...")] = "128,512",
    decode: Annotated[
        str, typer.Option(help="Batches: sequences @ tokens that each has before.", metavar="N@DEPTH,...")
    ] = "1@512,8@64",
    requests: Annotated[
        int, typer.Option(help="Also this many conversations at once, with lengths as people have them.", min=0)
    ] = 0,
    new_tokens: Annotated[int, typer.Option(help="Tokens that each sequence of a batch decodes.", min=2)] = 64,
    rounds: Annotated[int, typer.Option(help="Samples of each; one more round warms up.", min=1)] = 5,
    out: Out = None,
    *,
    engine: EngineOptions,
) -> None:
    """Measure an engine in this process: prefill, decoding and, if asked for, the throughput of a list of requests."""
    lengths, batches = _counts(prefill), _batches(decode)
    # a prompt that is there again in the next round must be read again
    with load_engine(model, dataclasses.replace(engine, no_prefix_caching=True)) as loaded:
        loaded.wait_until_warm()
        from cvllm_jax.benchmarks.in_process import cases, chat_tokens, sample

        found = cases(
            chat_tokens(loaded), prefill=lengths, decode=batches, requests=requests, new_tokens=new_tokens
        )
        samples = sample(loaded, found, rounds)
        info = loaded.model_info()
    print(f"{info.name}: {info.dtype}, {info.quantization or 'not quantized'}, on {info.device}\n")
    print("tokens a second, median (lowest to highest)")
    for name, measured in samples.items():
        print(f"  {name:<24}{measured.median:10.1f}  ({min(measured.values):.1f} to {max(measured.values):.1f})")
    if out is not None:
        figures = {name: {"median": measured.median, "samples": measured.values} for name, measured in samples.items()}
        _write(out, "engine", {"model": info.name, "dtype": info.dtype, "quantization": info.quantization}, figures)


def _print_serving(summary: Summary, usage: Usage, goodput: bool) -> None:
    read = f"{summary.prompt_tokens} tokens read ({summary.cached_tokens} of them cached)"
    print(f"{summary.requests} chats in {summary.duration:.1f} s, {summary.failed} failed; {read}\n")
    rates = [("output tokens a second", summary.output_rate), ("chats a second", summary.request_rate)]
    if goodput:
        rates.append(("of these within the limits", summary.goodput))
    for name, rate in rates:
        print(f"{name:<28}{rate:9.2f}")
    print(f"\n{'milliseconds':<28}{'mean':>9}{'p50':>9}{'p95':>9}{'p99':>9}")
    for name, spread in (
        ("to the first token", summary.first_token), ("for each further token", summary.token),
        ("between pieces of text", summary.between), ("for the whole answer", summary.request),
    ):  # fmt: skip
        cells = ("-" if math.isnan(value) else f"{value:.1f}" for value in spread.values())
        print(f"{name:<28}" + "".join(f"{cell:>9}" for cell in cells))
    if usage.peak_memory is not None:
        print(f"\n{'peak memory, MB':<28}{usage.peak_memory / 1e6:9.0f}")
    if usage.joules is not None:
        print(f"{'energy of the machine, J':<28}{usage.joules:9.1f}")


def _write(
    out: Path,
    kind: str,
    what: dict[str, Any],
    figures: Any,
    outcomes: list[Outcome] | None = None,
    usage: Usage | None = None,
) -> None:
    from cvllm_jax.benchmarks.machine import record

    found = record() | {"kind": kind, **what, "figures": figures}
    if outcomes is not None:
        found |= {"usage": usage, "outcomes": outcomes}
    out.write_text(json.dumps(_plain(found), indent=1, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """As JSON has it: dataclasses as objects, and null for the NaN of a latency that nothing had."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
