"""Choosing tokens, against the distribution worked out in float64 and against what a request may depend on."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cvllm_jax.engine.batch import AdmitLayout
from cvllm_jax.engine.plan import Admission
from cvllm_jax.engine.sampler import Form, SamplingBatch, admit, empty_state, sample

V, ROWS = 24, 4096
GREEDY = {
    "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "frequency_penalty": 0.0,
    "presence_penalty": 0.0, "forbid_end": False, "logprobs": False, "top_logprobs": False, "tracks_tokens": False,
    "constrained": False,
}  # fmt: skip
def run_form(logits, state, batch, allowed=None, *, form):
    """``sample``; ``allowed`` holds the tokens that constrained rows may choose, all by default."""
    rows, size = logits.shape
    mask = np.ones((rows, -(-size // 32) * 32), bool)
    if allowed is not None:
        mask[:] = np.isin(np.arange(mask.shape[1]), allowed)
    return sample(logits, state, batch, np.packbits(mask, axis=1, bitorder="little").view(np.uint32), form=form)


RUNS = {form: jax.jit(partial(run_form, form=form), static_argnums=3) for form in Form}
run = None


@pytest.fixture(autouse=True, params=[Form.CONDITIONAL, Form.STRAIGHT])
def form(request, monkeypatch):
    """Every test here holds for both forms that can do everything."""
    monkeypatch.setattr(sys.modules[__name__], "run", RUNS[request.param])
    return request.param


def batch_of(rows, seeds=None, positions=None, slots=None):
    """One row for each dictionary of settings."""
    size = len(rows)
    column = {name: np.array([{**GREEDY, **row}[name] for row in rows]) for name in GREEDY}
    as_float = ("temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
    with np.errstate(over="ignore"):
        fields = {n: jnp.asarray(c.astype(np.float32) if n in as_float else c) for n, c in column.items()}
    seeds = np.arange(size, dtype=np.uint64) if seeds is None else np.asarray(seeds, np.uint64)
    words = np.stack([seeds & 0xFFFFFFFF, seeds >> np.uint64(32)], axis=1).astype(np.uint32)
    return SamplingBatch(
        seed=jnp.asarray(words), position=jnp.asarray(np.zeros(size) if positions is None else positions, jnp.int32),
        slot=jnp.asarray(np.zeros(size) if slots is None else slots, jnp.int32), **fields,
    )  # fmt: skip


def admitted(prompt=(), generated=(), bias=(), ends=(), slots=2):
    """A state whose slot 0 holds this sequence."""
    layout = AdmitLayout(64, V, 32, 8)
    admission = Admission(
        slot=0, tokens=(*prompt, *generated), prompt_length=len(prompt), bias=tuple(bias), end_tokens=tuple(ends)
    )
    return admit(empty_state(slots, V), layout.unpack(jnp.asarray(layout.pack(admission))))


def distribution(logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """What should be drawn from: filters in the order top-k, top-p, min-p."""
    scaled = np.asarray(logits, np.float64) / temperature
    kept = np.ones(V, bool)
    if top_k:
        kept &= scaled >= np.sort(scaled)[-min(top_k, V)]
    p = np.where(kept, np.exp(scaled - scaled.max()), 0)
    order = np.argsort(-p)
    before = np.cumsum(p[order]) - p[order]
    kept[order[before >= top_p * p.sum()]] = False
    kept &= p >= min_p * p.max()
    p = np.where(kept, p, 0)
    return p / p.sum()


def penalised(logits, prompt, generated, bias, *, repetition=1.0, frequency=0.0, presence=0.0):
    out = np.asarray(logits, np.float64).copy()
    for token in {*prompt, *generated}:
        out[token] = out[token] / repetition if out[token] > 0 else out[token] * repetition
    for token in set(generated):
        out[token] -= frequency * list(generated).count(token) + presence
    for token, value in bias:
        out[token] += value
    return out


def assert_drawn_from(tokens, p):
    """Pearson's statistic within five standard deviations, and nothing that cannot be drawn."""
    counts = np.bincount(tokens, minlength=V)
    assert not counts[p == 0].any()
    expected = p * len(tokens)
    many = expected > 5
    observed = np.append(counts[many], counts[~many].sum())
    expected = np.append(expected[many], expected[~many].sum() + 1e-9)
    chi = ((observed - expected) ** 2 / expected).sum()
    degrees = max(len(expected) - 1, 1)
    assert chi < degrees + 5 * np.sqrt(2 * degrees) + 5


def logits_of(seed=0, spread=2.0):
    return (np.random.default_rng(seed).standard_normal(V) * spread).astype(np.float32)


def draw(logits, state=None, seeds=None, positions=None, allowed=None, **settings):
    state = empty_state(2, V) if state is None else state
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (ROWS, V))
    return np.asarray(run(rows, state, batch_of([settings] * ROWS, seeds, positions), allowed)[1])[:, 0]


@pytest.mark.parametrize("settings", [
    {}, {"temperature": 0.5}, {"temperature": 3.0}, {"top_k": 1}, {"top_k": 5}, {"top_k": 1000}, {"top_p": 0.6},
    {"top_p": 0.01}, {"min_p": 0.1}, {"min_p": 1.0}, {"top_k": 8, "top_p": 0.7, "min_p": 0.05, "temperature": 1.5},
])  # fmt: skip
def test_draws_follow_the_filtered_distribution(settings):
    settings = {"temperature": 1.0, **settings}
    logits = logits_of()
    assert_drawn_from(draw(logits, **settings), distribution(logits, **settings))


@pytest.mark.parametrize("vary", ["seeds", "high word", "positions"])
def test_draws_are_independent_from_seed_to_seed_and_position_to_position(vary):
    """Single draws, and pairs of neighbours, which would show a correlation."""
    steps = np.arange(ROWS)
    change = {
        "seeds": {"seeds": steps}, "high word": {"seeds": steps.astype(np.uint64) << np.uint64(32)},
        "positions": {"seeds": np.full(ROWS, 7), "positions": steps},
    }[vary]  # fmt: skip
    tokens = draw(np.zeros(V), temperature=1.0, **change)
    assert_drawn_from(tokens, np.full(V, 1 / V))
    table = np.zeros((4, 4))
    np.add.at(table, (tokens[:-1] % 4, tokens[1:] % 4), 1)
    assert ((table - len(tokens) / 16) ** 2 / (len(tokens) / 16)).sum() < 15 + 5 * np.sqrt(30)


def test_greedy_takes_the_first_largest():
    logits = logits_of()
    logits[[3, 9]] = logits.max() + 1
    assert set(draw(logits)) == {3}


@pytest.mark.parametrize("temperature", [1e-3, 1e-20, 1e-38, 1e-45, 1e-300])
def test_tiny_temperatures_are_greedy(temperature):
    logits = logits_of()
    assert set(draw(logits, temperature=temperature)) == {int(logits.argmax())}
    assert set(draw(logits * 1e30, temperature=temperature, top_p=0.9, top_k=5)) == {int(logits.argmax())}


def test_a_huge_temperature_is_uniform_over_what_is_allowed():
    state = admitted(ends=[0, 1])
    tokens = draw(logits_of(), state, temperature=1e300, tracks_tokens=True, forbid_end=True)
    assert_drawn_from(tokens, np.array([0, 0] + [1 / (V - 2)] * (V - 2)))


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_extreme_logits(settings):
    logits = np.full(V, -3e38, np.float32)
    logits[[4, 7]] = 3e38
    assert_drawn_from(draw(logits, temperature=1.0, **settings), np.isin(np.arange(V), [4, 7]) / 2)
    logits = np.full(V, -np.inf, np.float32)
    logits[5] = -3e38
    assert set(draw(logits, temperature=1.0, **settings)) == {5}


def test_penalties_and_bias():
    logits = logits_of(3)
    prompt, generated, bias = [1, 2, 3, 3], [3, 4, 4, 4], [(5, 2.0), (6, -100.0)]
    state = admitted(prompt, generated, bias)
    settings = {"repetition_penalty": 1.7, "frequency_penalty": 0.4, "presence_penalty": 0.6, "tracks_tokens": True}
    want = penalised(logits, prompt, generated, bias, repetition=1.7, frequency=0.4, presence=0.6)
    assert set(draw(logits, state, **settings)) == {int(want.argmax())}
    assert_drawn_from(draw(logits, state, temperature=1.0, **settings), distribution(want))


def test_what_is_chosen_counts_from_then_on():
    logits = np.zeros(V, np.float32)
    logits[[2, 3]] = 1.0, 0.9
    state, batch = admitted(slots=2), batch_of([{"frequency_penalty": 0.15, "tracks_tokens": True}])
    chosen = []
    for _ in range(4):
        state, out = run(jnp.asarray(logits)[None], state, batch)
        chosen.append(int(out[0, 0]))
    assert chosen == [2, 3, 2, 3]
    assert int(state.last_token[0]) == 3


def test_end_tokens_are_masked_while_they_are_forbidden():
    logits = np.zeros(V, np.float32)
    logits[[0, 1]] = 50.0
    state = admitted(ends=[0, 1])
    free = draw(logits, state, tracks_tokens=True)
    assert set(free) == {0}
    assert set(draw(logits, state, tracks_tokens=True, forbid_end=True)) == {2}
    assert_drawn_from(
        draw(logits, state, temperature=1.0, tracks_tokens=True, forbid_end=True),
        np.array([0, 0] + [1 / (V - 2)] * (V - 2)),
    )


@pytest.mark.parametrize("settings", [{}, {"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.05}])
def test_a_mask_comes_before_everything_that_cuts_off(settings):
    """The most likely token is not allowed; top-k and its like count among those that are."""
    logits, allowed = logits_of(9), (1, 4, 6, 7, 9, 12, 20, 23)
    logits[11] = 30.0
    masked = np.where(np.isin(np.arange(V), allowed), logits, -np.inf)
    tokens = draw(logits, allowed=allowed, constrained=True, temperature=1.0, **settings)
    assert_drawn_from(tokens, distribution(masked, **settings))
    assert set(draw(logits, allowed=allowed, constrained=True)) == {int(masked.argmax())}
    raw = np.asarray(run(jnp.asarray(logits)[None], empty_state(2, V),
                         batch_of([{"constrained": True, "logprobs": True}]), allowed)[1])[0]  # fmt: skip
    assert raw.view(np.float32)[1] == pytest.approx(masked.max() - 30.0, abs=1e-3)  # of the raw distribution


def test_admission_leaves_nothing_of_the_sequence_before():
    dirty = admitted([1, 1], [2, 2], [(3, 5.0)], [4])
    layout = AdmitLayout(64, V, 32, 8)
    vector = layout.pack(Admission(slot=0, tokens=(7,), prompt_length=1, bias=(), end_tokens=()))
    clean, fresh = admit(dirty, layout.unpack(jnp.asarray(vector))), admitted([7])
    for name in ("seen", "bias"):
        np.testing.assert_array_equal(getattr(clean, name), getattr(fresh, name))


def test_a_choice_depends_on_its_own_row_alone():
    """Alone, and among neighbours with every kind of setting, at another row and slot."""
    rng = np.random.default_rng(0)
    rows = [
        {"temperature": 1.0}, {}, {"temperature": 0.7, "top_k": 3, "logprobs": True},
        {"temperature": 1.0, "top_p": 0.5},
        {"temperature": 2.0, "min_p": 0.2, "top_logprobs": True, "logprobs": True},
        {"temperature": 1.0, "repetition_penalty": 1.5, "tracks_tokens": True, "forbid_end": True},
    ]  # fmt: skip
    logits = jnp.asarray(rng.standard_normal((len(rows), V)), jnp.float32)
    state = empty_state(len(rows) + 1, V)
    seeds, positions = np.uint64(2**63) + np.arange(len(rows), dtype=np.uint64), np.arange(len(rows)) + 5
    together = run(logits, state, batch_of(rows, seeds, positions, range(len(rows))))[1]
    for index, row in enumerate(rows):
        one = slice(index, index + 1)
        single = run(logits[one], state, batch_of([row], seeds[one], positions[one], [3]))[1]
        assert int(single[0, 0]) == int(together[index, 0])


def test_log_probabilities_are_of_the_raw_distribution():
    logits = logits_of(5)
    state = admitted([1], [2], [(3, 90.0)])
    row = {
        "temperature": 0.3, "top_k": 2, "repetition_penalty": 2.0, "tracks_tokens": True, "logprobs": True,
        "top_logprobs": True,
    }  # fmt: skip
    out = np.asarray(run(jnp.asarray(logits)[None], state, batch_of([row]))[1])[0]
    raw = logits - np.log(np.exp(logits.astype(np.float64)).sum())
    count = (len(out) - 2) // 2
    floats = out.view(np.float32)
    assert out[0] == 3 and floats[1] == pytest.approx(raw[3], abs=1e-5)
    order = np.argsort(-raw)[:count]
    assert out[2 : 2 + count].tolist() == order.tolist()
    np.testing.assert_allclose(floats[2 + count :], raw[order], atol=1e-5)


def test_a_row_of_nan_chooses_a_token_that_exists():
    assert draw(np.full(V, np.nan)).min() >= 0 and draw(np.full(V, np.nan), temperature=1.0).max() < V


@pytest.mark.parametrize("size", [24, 640, 5000])
def test_the_most_likely_tokens_are_in_order_with_ties(size):
    """Few distinct values, so that ties cross the chunks that the search looks at."""
    logits = np.random.default_rng(size).integers(0, 40, size).astype(np.float32)
    batch = batch_of([{"logprobs": True, "top_logprobs": True}])
    out = np.asarray(run(jnp.asarray(logits)[None], empty_state(2, size), batch)[1])[0]
    assert out[2:22].tolist() == np.argsort(-logits, kind="stable")[:20].tolist()


def test_all_forms_choose_alike(form):
    """Over a vocabulary as large as a model's, with every kind of setting."""
    rng = np.random.default_rng(1)
    rows = [
        {"temperature": 0.8, "top_p": 0.9}, {"temperature": 1.2, "top_k": 50}, {"temperature": 1.0, "min_p": 0.02},
        {"temperature": 0.7, "top_k": 40, "top_p": 0.8}, {}, {"repetition_penalty": 1.3, "tracks_tokens": True},
    ]  # fmt: skip
    logits = jnp.asarray(rng.standard_normal((len(rows), 3000)) * 3, jnp.float32)
    state, batch = empty_state(len(rows), 3000), batch_of(rows, slots=range(len(rows)))
    chosen = {other: np.asarray(RUNS[other](logits, state, batch)[1])[:, 0] for other in Form}
    np.testing.assert_array_equal(chosen[form], chosen[Form.CONDITIONAL])
    np.testing.assert_array_equal(chosen[Form.GREEDY], np.asarray(logits).argmax(-1))
