"""A plan packed into one vector and unpacked inside a program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvllm_jax.engine.batch import AdmitLayout, DecodeLayout, PrefillLayout
from cvllm_jax.engine.pages import PageRun
from cvllm_jax.engine.plan import Admission, DecodeRow, Plan, PrefillBlock, SamplingSettings, check_plan

PLAIN = SamplingSettings(
    temperature=0.25, top_k=5, top_p=0.5, min_p=0.125, repetition_penalty=1.5, frequency_penalty=-0.5,
    presence_penalty=2.0, seed=(0xFFFFFFFF, 0x80000000), logprobs=True, top_logprobs=False, tracks_tokens=True,
)  # fmt: skip


def check_sampling(batch, row, settings, slot, position, forbid_end):
    for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty",
                 "presence_penalty", "logprobs", "top_logprobs", "tracks_tokens"):  # fmt: skip
        assert getattr(batch, name)[row] == getattr(settings, name), name
    assert batch.seed.dtype == jnp.uint32 and tuple(map(int, batch.seed[row])) == settings.seed
    assert (batch.slot[row], batch.position[row], batch.forbid_end[row]) == (slot, position, forbid_end)


def test_decode_rows():
    layout = DecodeLayout(4, 2, 6, 8, 9)
    rows = [
        DecodeRow(
            slot=2, position=17, steps=1, tables=(PageRun(0, (5, 3, 7)), PageRun(1, (4, 8))), forbid_end=1,
            sampling=PLAIN,
        ),
        DecodeRow(
            slot=0, position=8, steps=1, tables=(PageRun(0, (1, 2)), PageRun(1, (6,))), forbid_end=0, sampling=PLAIN
        ),
    ]  # fmt: skip
    vector = layout.pack(rows)
    assert vector.dtype == np.int32 and vector.shape == (layout.size,)
    (batch, windowed), sampling = jax.jit(layout.unpack)(vector)
    assert windowed.page.tolist() == [8, 6, 0, 0] and windowed.tables[0].tolist() == [0, 4, 8, 0, 0, 0]
    assert windowed.positions.tolist() == batch.positions.tolist()
    assert batch.positions.tolist() == [17, 8, 0, 0] and batch.counts.tolist() == [1, 1, 0, 0]
    assert batch.page.tolist() == [7, 2, 0, 0] and batch.offset.tolist() == [1, 0, 0, 0]
    assert batch.tables[0].tolist() == [5, 3, 7, 0, 0, 0]
    check_sampling(sampling, 0, PLAIN, 2, 18, True)
    check_sampling(sampling, 1, PLAIN, 0, 9, False)
    assert sampling.slot.tolist() == [2, 0, 9, 9]


def test_rows_of_several_steps():
    """Each step is at the next position; a row that takes fewer steps turns into padding."""
    layout = DecodeLayout(2, 1, 6, 8, 9)
    rows = [
        DecodeRow(slot=2, position=15, steps=3, tables=(PageRun(0, (5, 3, 7)),), forbid_end=2, sampling=PLAIN),
        DecodeRow(slot=0, position=8, steps=1, tables=(PageRun(0, (1, 2)),), forbid_end=0, sampling=PLAIN),
    ]
    steps = [jax.jit(layout.unpack)(layout.pack(rows), ahead) for ahead in range(3)]
    assert [batch.positions.tolist() for (batch,), _ in steps] == [[15, 8], [16, 0], [17, 0]]
    assert [batch.page.tolist() for (batch,), _ in steps] == [[3, 2], [7, 0], [7, 0]]
    assert [batch.counts.tolist() for (batch,), _ in steps] == [[1, 1], [1, 0], [1, 0]]
    assert [sampling.position[0] for _, sampling in steps] == [16, 17, 18]
    assert [bool(sampling.forbid_end[0]) for _, sampling in steps] == [True, True, False]


def test_prefill_blocks():
    layout = PrefillLayout(12, 3, 4, 2, 5, 2, 9)
    blocks = [
        PrefillBlock(
            slot=1, start=3, tokens=(11, 12, 13), tables=(PageRun(0, (4, 6, 8)), PageRun(1, (2, 1))), choose=True,
            forbid_end=2, sampling=PLAIN,
        ),
        PrefillBlock(
            slot=2, start=0, tokens=(7,), tables=(PageRun(0, (3,)),) * 2, choose=False, forbid_end=0, sampling=PLAIN
        ),
    ]  # fmt: skip
    vector = layout.pack(blocks)
    assert vector.dtype == np.int32 and vector.shape == (layout.size,)
    tokens, (batch, windowed), last, sampling = jax.jit(layout.unpack)(vector)
    assert tokens.tolist() == [11, 12, 13, 0, 7, 0, 0, 0, 0, 0, 0, 0]
    assert batch.positions.tolist() == [3, 4, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert batch.page.tolist() == [6, 8, 8, 0, 3, 0, 0, 0, 0, 0, 0, 0]  # padding goes to the padding page
    assert windowed.page.tolist() == [2, 1, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0]
    assert batch.offset.tolist() == [1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert (batch.starts.tolist(), batch.counts.tolist()) == ([3, 0, 0], [3, 1, 0])
    assert last.tolist() == [2, 4, 8]
    check_sampling(sampling, 0, PLAIN, 1, 6, True)
    assert sampling.slot.tolist() == [1, 9, 9]  # a block that chooses nothing writes to the idle slot


def block_of(number, start, tokens):
    tables = (PageRun(0, tuple(10 * number + page for page in range(1, 2 + (start + len(tokens)) // 2))),)
    return PrefillBlock(
        slot=number, start=start, tokens=tuple(tokens), tables=tables, choose=True, forbid_end=0, sampling=PLAIN
    )


def test_tokens_without_gaps():
    layout = PrefillLayout(8, 3, 4, 1, 5, 2, 9)
    tokens, (batch,), last, sampling = jax.jit(layout.unpack)(
        layout.pack([block_of(1, 3, (11, 12, 13)), block_of(2, 0, (7,))])
    )
    assert tokens.tolist() == [11, 12, 13, 7, 0, 0, 0, 0]
    assert batch.positions.tolist() == [3, 4, 5, 0, 0, 0, 0, 0]
    assert batch.page.tolist() == [12, 13, 13, 21, 0, 0, 0, 0]
    assert batch.offset.tolist() == [1, 0, 1, 0, 0, 0, 0, 0]
    assert (batch.starts.tolist(), batch.counts.tolist()) == ([3, 0, 0], [3, 1, 0])
    assert batch.real.tolist() == [True] * 4 + [False] * 4
    assert last.tolist()[:2] == [2, 3] and sampling.slot.tolist() == [1, 2, 9]


WITHOUT_GAPS = PrefillLayout(16, 4, 6, 1, 8, 2, 99)
unpacked = jax.jit(WITHOUT_GAPS.unpack)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=12))
def test_blocks_of_any_length_are_taken_whole_or_cut(counts):
    """Each step is full or the last, tokens keep their order and positions, and only a block's end is chosen after."""
    layout = WITHOUT_GAPS
    texts = [range(100 * number, 100 * number + count) for number, count in enumerate(counts)]
    rest, found = tuple(block_of(number, 2, text) for number, text in enumerate(texts)), {}
    while rest:
        part, rest = layout.first_of(rest)
        assert len(part) == layout.blocks or sum(len(b.tokens) for b in part) == layout.tokens or not rest
        tokens, (batch,), last, _ = unpacked(layout.pack(part))
        by_block = batch.blocks(tokens)
        for row, block in enumerate(part):
            assert by_block[row, : len(block.tokens)].tolist() == list(block.tokens)
            assert tokens[last[row]] == block.tokens[-1]
            assert block.start == 2 + len(found.get(block.slot, ()))
            found.setdefault(block.slot, []).extend(block.tokens)
            assert block.choose == (len(found[block.slot]) == counts[block.slot])
        assert batch.tokens(by_block)[batch.real].tolist() == tokens[batch.real].tolist()
    assert [found[number] for number in range(len(counts))] == [list(text) for text in texts]


@pytest.mark.parametrize("prompt_length", [1, 3])
def test_admissions(prompt_length):
    layout = AdmitLayout(6, 100, 4, 3)
    admission = Admission(
        slot=5, tokens=(8, 9, 10), prompt_length=prompt_length, bias=((7, -1.5), (3, 2.0)), end_tokens=(1, 2)
    )
    fields = jax.jit(layout.unpack)(layout.pack(admission))
    nothing = 100  # past the vocabulary, where a scatter drops it
    known = [8, 9, 10]
    assert fields["slot"].tolist() == [5]
    assert fields["prompt"].tolist() == known[:prompt_length] + [nothing] * (6 - prompt_length)
    assert fields["generated"].tolist() == known[prompt_length:] + [nothing] * (3 + prompt_length)
    assert fields["bias_token"].tolist() == [7, 3, nothing, nothing]
    assert fields["bias"].tolist()[:2] == [-1.5, 2.0]
    assert fields["ends"].tolist() == [1, 2, nothing]


@pytest.mark.parametrize(("change", "message"), [
    ({"tables": (PageRun(0, (3, 40)),)}, "slot 1: its block table names page 40; the pool has pages 1 to 39"),
    ({"tables": (PageRun(0, (3, -1)),)}, "names page -1"),
    ({"tables": (PageRun(0, (0, 3)),)}, "names page 0"),
    ({"tables": (PageRun(0, (3,)),)}, "slot 1: 1 pages of 8 tokens do not hold 11 tokens"),
    ({"tables": (PageRun(1, (3,)),)}, "slot 1: its pages begin at token 8, after what it attends to"),
    ({"tables": ()}, "slot 1: it has 0 block tables, and there are 1 cache groups"),
    ({"slot": 4}, "slot 4: there are slots 0 to 3"),
    ({"steps": 2}, "slot 1 takes 2 steps of 1"),
])  # fmt: skip
def test_plans_that_name_what_is_not_there(change, message):
    good = {"slot": 1, "position": 10, "steps": 1, "tables": (PageRun(0, (3, 4)),), "forbid_end": 0, "sampling": PLAIN}
    check_plan(Plan(admissions=(), decode=(DecodeRow(**good),), decode_steps=1, prefill=()), [(40, None)], 8, 4)
    plan = Plan(admissions=(), decode=(DecodeRow(**{**good, **change}),), decode_steps=1, prefill=())
    with pytest.raises(ValueError, match=message):
        check_plan(plan, [(40, None)], 8, 4)


def test_a_block_past_its_pages_and_a_slot_used_twice():
    settings = {"slot": 1, "tables": (PageRun(0, (2,)),), "choose": True, "forbid_end": 0, "sampling": PLAIN}
    block = PrefillBlock(start=6, tokens=(1,) * 3, **settings)
    row = DecodeRow(slot=1, position=3, steps=1, tables=(PageRun(0, (3,)),), forbid_end=0, sampling=PLAIN)
    with pytest.raises(ValueError, match="the block of slot 1 at 6: 1 pages of 8 tokens do not hold 9 tokens"):
        check_plan(Plan(admissions=(), decode=(), decode_steps=1, prefill=(block,)), [(40, None)], 8, 4)
    good = PrefillBlock(start=0, tokens=(1,), **settings)
    with pytest.raises(ValueError, match="a slot chooses twice"):
        check_plan(Plan(admissions=(), decode=(row,), decode_steps=1, prefill=(good,)), [(40, None)], 8, 4)
