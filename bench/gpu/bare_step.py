"""A compiled decode step without the engine around it: what the device takes when the host has nothing to do.

It reaches into the runner, because a bare step is nothing that the engine itself ever runs.
"""

import time

import jax

from cvllm_jax.engine.plan import DecodeRow, SamplingSettings
from cvllm_jax.engine.runner import Runner

GREEDY = SamplingSettings(
    temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, frequency_penalty=0.0,
    presence_penalty=0.0, seed=(0, 0), logprobs=False, top_logprobs=False, tracks_tokens=False,
)  # fmt: skip


def bare_step_seconds(runner: Runner, sequences: int, length: int, repeats: int) -> float:
    """Seconds of a greedy step of so many sequences of ``length`` tokens, called back to back on an idle engine.

    The batch is on the device already, and no token is read. Pages are used that the engine holds to be free, so it
    must not have a prefix cache.
    """
    settings = runner.settings
    pages = -(-length // settings.page_size)
    if sequences * pages >= settings.num_pages:
        raise ValueError(f"{sequences} sequences of {pages} pages do not fit in {settings.num_pages} pages")
    rows = tuple(
        DecodeRow(
            slot=index, position=length - 1, steps=1, pages=tuple(range(1 + index * pages, 1 + (index + 1) * pages)),
            forbid_end=0, sampling=GREEDY,
        )
        for index in range(sequences)
    )  # fmt: skip
    layout = next(layout for layout in runner._decode_layouts if layout.rows >= sequences)
    form = next(form for form in settings.steps.decode_forms if form.serves(GREEDY))
    program = runner._decode_program(layout, form, 1)
    vector = jax.device_put(layout.pack(rows), runner._replicated)

    def run(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            runner._cache, runner._state, out = program(runner._leaves, runner._cache, runner._state, vector)
        jax.block_until_ready(out)
        return (time.perf_counter() - began) / count

    run(3)
    return min(run(repeats) for _ in range(3))
