"""Choosing tokens on the device: penalties, bias, temperature, top-k, top-p, min-p, seeds and log probabilities.

A step is compiled in one of three forms, see :class:`Form`; the same request draws the same tokens in each. No step
sorts the vocabulary.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt

from cvllm_jax.engine.plan import SamplingSettings
from cvllm_jax.params import MAX_TOP_LOGPROBS

__all__ = ["NO_DRAFT", "Form", "SamplerState", "SamplingBatch", "admit", "empty_state", "next_tokens", "sample"]

#: Bits of ``SamplerState.seen``; those below count how often the answer holds the token.
IN_PROMPT, IS_END = 1 << 30, 1 << 29
COUNT = IS_END - 1

#: In place of a drafted token: the row's token is the last one that its slot chose.
NO_DRAFT = -1

#: Neighbouring tokens that the search for the most likely ones looks at together.
CHUNK = 128


class Form(enum.Enum):
    """What a step can do for its rows, fixed when it is compiled."""

    CONDITIONAL = "conditional"
    """Everything, and each feature stands behind a condition on the whole batch: a CPU branches, so a batch of
    greedy requests costs one argmax."""
    STRAIGHT = "straight"
    """Everything, computed whether a row wants it or not: a condition would break a CUDA graph in two, and the host
    would wait at it for the device."""
    GREEDY = "greedy"
    """The argmax of every row and nothing else."""

    def serves(self, settings: SamplingSettings) -> bool:
        """Whether a step of this form can choose for a request with these settings."""
        return self is not Form.GREEDY or not (settings.temperature or settings.logprobs or settings.tracks_tokens)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingBatch:
    """How each of R rows chooses; see :class:`cvllm_jax.engine.plan.SamplingSettings`."""

    temperature: Float[Array, "R"]
    top_k: Int[Array, "R"]
    top_p: Float[Array, "R"]
    min_p: Float[Array, "R"]
    repetition_penalty: Float[Array, "R"]
    frequency_penalty: Float[Array, "R"]
    presence_penalty: Float[Array, "R"]
    seed: UInt[Array, "R 2"]
    position: Int[Array, "R"]
    """Position that the chosen token takes in its sequence."""
    slot: Int[Array, "R"]
    forbid_end: Bool[Array, "R"]
    logprobs: Bool[Array, "R"]
    top_logprobs: Bool[Array, "R"]
    tracks_tokens: Bool[Array, "R"]
    constrained: Bool[Array, "R"]
    draft: Int[Array, "R"] | None = None
    """Of rows that follow their sequence's first: the token that the row guesses to come after the row before it."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerState:
    """What the device keeps for each slot, the last row for padding."""

    last_token: Int[Array, "slots"]
    seen: Int[Array, "slots V"]
    """Bits and counts of every token; valid for slots whose sequence tracks tokens."""
    bias: Float[Array, "slots V"]


def empty_state(slots: int, vocab_size: int) -> SamplerState:
    return SamplerState(
        last_token=jnp.zeros((slots,), jnp.int32),
        seen=jnp.zeros((slots, vocab_size), jnp.int32),
        bias=jnp.zeros((slots, vocab_size), jnp.float32),
    )


def admit(state: SamplerState, fields: dict[str, jax.Array]) -> SamplerState:
    """Write the row of a sequence that enters a slot; see :class:`cvllm_jax.engine.batch.AdmitLayout`."""
    vocab_size, slot = state.seen.shape[1], fields["slot"][0]
    seen = jnp.zeros((vocab_size,), jnp.int32).at[fields["generated"]].add(1, mode="drop")
    seen += jnp.zeros((vocab_size,), jnp.int32).at[fields["prompt"]].set(IN_PROMPT, mode="drop")
    seen += jnp.zeros((vocab_size,), jnp.int32).at[fields["ends"]].set(IS_END, mode="drop")
    bias = jnp.zeros((vocab_size,), jnp.float32).at[fields["bias_token"]].set(fields["bias"], mode="drop")
    return SamplerState(
        last_token=state.last_token, seen=state.seen.at[slot].set(seen), bias=state.bias.at[slot].set(bias)
    )


def next_tokens(state: SamplerState, batch: SamplingBatch) -> Int[Array, "R"]:
    """The tokens that decode rows begin with: the last of their slot, or their drafts."""
    last = state.last_token[batch.slot]
    return last if batch.draft is None else jnp.where(batch.draft == NO_DRAFT, last, batch.draft)


@jax.named_scope("sample")
def sample(
    logits: Float[Array, "R V"], state: SamplerState, batch: SamplingBatch, mask: UInt[Array, "R W"], *,
    form: Form = Form.CONDITIONAL,
) -> tuple[SamplerState, Int[Array, "R C"]]:  # fmt: skip
    """Choose a token for each row.

    Arguments:
      mask: the tokens that constrained rows may choose; token t is bit t % 32 of word t // 32. Every bit of the other
        rows is set.

    Returns:
      The state with the tokens entered, and what the host reads: for each row the token, its log probability in the
      raw distribution, the most likely tokens and their log probabilities, floats as bits.
    """
    chosen = logits
    if form is not Form.GREEDY:
        chosen = _where_wanted(form, batch.tracks_tokens, lambda: _adjust(logits, state, batch), lambda: logits)
    allowed = chosen
    chosen = _where_wanted(form, batch.constrained, lambda: _mask_out(allowed, mask), lambda: allowed)
    token = greedy = _argmax(chosen)
    if form is not Form.GREEDY:
        token = _where_wanted(form, batch.temperature > 0, lambda: _draw(chosen, greedy, batch, form), lambda: greedy)
    state = SamplerState(
        last_token=state.last_token.at[_writers(token, batch, state.last_token.shape[0])].set(token, mode="drop"),
        seen=state.seen.at[batch.slot, token].add(1),
        bias=state.bias,
    )
    return state, _pack(token, logits, batch, form)


def _where_wanted[T](form: Form, wanted: Bool[Array, "R"], yes: Callable[[], T], no: Callable[[], T]) -> T:
    """``yes()`` if any row wants it. For the other rows it gives what ``no()`` gives or what nobody reads."""
    return lax.cond(jnp.any(wanted), yes, no) if form is Form.CONDITIONAL else yes()


def _adjust(logits: Float[Array, "R V"], state: SamplerState, batch: SamplingBatch) -> Float[Array, "R V"]:
    seen, bias = state.seen[batch.slot], state.bias[batch.slot]
    count = seen & COUNT
    penalty = jnp.where((seen & (COUNT | IN_PROMPT)) != 0, batch.repetition_penalty[:, None], 1.0)
    adjusted = jnp.where(logits > 0, logits / penalty, logits * penalty)
    adjusted -= batch.frequency_penalty[:, None] * count + batch.presence_penalty[:, None] * (count > 0)
    adjusted += bias
    adjusted = jnp.where(((seen & IS_END) != 0) & batch.forbid_end[:, None], -jnp.inf, adjusted)
    return jnp.where(batch.tracks_tokens[:, None], adjusted, logits)


def _mask_out(logits: Float[Array, "R V"], mask: UInt[Array, "R W"]) -> Float[Array, "R V"]:
    size = logits.shape[-1]
    bits = jnp.repeat(mask, 32, axis=1)[:, :size] >> (jnp.arange(size, dtype=jnp.uint32) % 32)
    return jnp.where(bits & 1 == 1, logits, -jnp.inf)


def _draw(
    logits: Float[Array, "R V"], greedy: Int[Array, "R"], batch: SamplingBatch, form: Form
) -> Int[Array, "R"]:
    """Gumbel-max draws of the rows with a temperature, the greedy choice of the others."""
    top = jnp.take_along_axis(logits, greedy[:, None], axis=-1)
    # relative to the best token before dividing, so that tiny temperatures overflow to -inf and not to NaN
    scaled = (logits - top) / jnp.where(batch.temperature > 0, batch.temperature, 1.0)[:, None]
    vocab_size = logits.shape[-1]
    # in a CUDA graph the search runs unrolled, in few passes of 15 comparisons a read
    digit = 1 if form is Form.CONDITIONAL else 4
    by_count = (batch.top_k > 0) & (batch.top_k < vocab_size)
    everything = jnp.ones(scaled.shape, bool)

    def top_k() -> jax.Array:
        goal = batch.top_k.astype(jnp.float32)
        return _top(scaled, jnp.ones_like(scaled), goal, digit) | ~by_count[:, None]

    kept = _where_wanted(form, by_count, top_k, lambda: everything)
    by_mass = batch.top_p < 1.0

    def top_p() -> jax.Array:
        weights = jnp.where(kept, jnp.exp(scaled), 0.0)
        goal = batch.top_p * weights.sum(-1)
        return kept & (_top(scaled, weights, goal, digit) | ~by_mass[:, None])

    kept = _where_wanted(form, by_mass, top_p, lambda: kept)
    kept &= scaled >= jnp.log(batch.min_p)[:, None]  # relative to the most likely token, whose value is 0

    noisy = scaled + jax.vmap(_gumbel, (0, 0, None))(batch.seed, batch.position, vocab_size)
    drawn = _argmax(jnp.where(kept, noisy, -jnp.inf))
    return jnp.where(batch.temperature > 0, drawn, greedy)


def _writers(token: Int[Array, "R"], batch: SamplingBatch, slots: int) -> Int[Array, "R"]:
    """The slot of each row whose token is its sequence's last: after it come drafts that are wrong, or none."""
    if batch.draft is None:
        return batch.slot
    first = batch.draft == NO_DRAFT
    wrong = jnp.cumsum(~first & (batch.draft != jnp.roll(token, 1)))
    right = wrong == lax.cummax(jnp.where(first, wrong, 0))  # none is wrong from the sequence's first row on
    goes_on = jnp.roll(right & ~first, -1).at[-1].set(False)
    return jnp.where(right & ~goes_on, batch.slot, slots)


def _argmax(values: Float[Array, "R V"]) -> Int[Array, "R"]:
    """Index of the first largest value. Two plain reductions: XLA:CPU does not vectorise ``argmax``'s pair of them."""
    size = values.shape[-1]
    index = jnp.where(values == values.max(-1, keepdims=True), jnp.arange(size, dtype=jnp.int32), size)
    return jnp.minimum(index.min(-1), size - 1)  # in range even if the values are NaN


def _gumbel(seed: UInt[Array, "2"], position: Int[Array, ""], count: int) -> Float[Array, "V"]:
    """Standard Gumbel noise for the tokens at one position.

    Threefry makes the position's key from the seed; the tokens' bits are then a keyed integer hash (two rounds of
    MurmurHash3's finaliser, Appleby 2011), because Threefry for a whole vocabulary costs more than the rest of
    sampling together on a CPU.
    """
    key = jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), position))
    bits = _mix(_mix(jnp.arange(count, dtype=jnp.uint32) ^ key[0]) + key[1])
    uniform = ((bits >> 9).astype(jnp.float32) + 0.5) * jnp.float32(2**-23)  # exact, never 0 or 1
    return -jnp.log(-jnp.log(uniform))


def _mix(x: UInt[Array, "V"]) -> UInt[Array, "V"]:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _top(
    values: Float[Array, "R V"], weights: Float[Array, "R V"], goal: Float[Array, "R"], digit: int
) -> Bool[Array, "R V"]:
    """The smallest set of largest values whose weights reach the goal, ties at its edge included.

    Finds the threshold in the order-preserving integer form of f32, ``digit`` bits a pass: exact, no sort.
    """
    bits = lax.bitcast_convert_type(values, jnp.uint32)
    order = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
    digits = jnp.arange(1, 1 << digit, dtype=jnp.uint32)

    def narrow(step: jax.Array, threshold: jax.Array) -> jax.Array:
        shift = 32 - digit * (step.astype(jnp.uint32) + 1)
        candidates = threshold[:, None] | (digits << shift)  # [R digits]
        above = order[:, None, :] >= candidates[:, :, None]
        # the larger the candidate, the fewer are above it
        reached = jnp.where(above, weights[:, None, :], 0.0).sum(-1) >= goal[:, None]
        return threshold | (reached.sum(-1, dtype=jnp.uint32) << shift)

    threshold = jnp.zeros(values.shape[:1], jnp.uint32)
    threshold = lax.fori_loop(0, 32 // digit, narrow, threshold, unroll=digit > 1)
    return order >= threshold[:, None]


def _pack(token: Int[Array, "R"], logits: Float[Array, "R V"], batch: SamplingBatch, form: Form) -> Int[Array, "R C"]:
    rows, count = logits.shape[0], min(MAX_TOP_LOGPROBS, logits.shape[1])

    def nothing() -> tuple[jax.Array, jax.Array, jax.Array]:
        return (
            jnp.zeros((rows,), jnp.float32), jnp.zeros((rows, count), jnp.int32), jnp.zeros((rows, count), jnp.float32),
        )  # fmt: skip

    def with_logprobs() -> tuple[jax.Array, jax.Array, jax.Array]:
        total = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0] - total
        values, tokens = _where_wanted(
            form, batch.top_logprobs, lambda: _most_likely(logits, count), lambda: nothing()[2:0:-1]
        )
        return chosen, tokens, values - total[:, None]

    def bits(x: jax.Array) -> jax.Array:
        return lax.bitcast_convert_type(x, jnp.int32)

    chosen, tokens, values = (
        nothing() if form is Form.GREEDY else _where_wanted(form, batch.logprobs, with_logprobs, nothing)
    )
    return jnp.concatenate([token[:, None], bits(chosen)[:, None], tokens, bits(values)], axis=1)


def _most_likely(logits: Float[Array, "R V"], count: int) -> tuple[Float[Array, "R C"], Int[Array, "R C"]]:
    """The largest values and their tokens, of equal ones the lower token first.

    They are all in those ``count`` chunks of the vocabulary whose largest values are largest, so one pass over the
    vocabulary finds the maximum of each chunk, and only small arrays are sorted.
    """
    rows, size = logits.shape
    chunks = jnp.pad(logits, ((0, 0), (0, -size % CHUNK)), constant_values=-jnp.inf).reshape(rows, -1, CHUNK)
    _, best = lax.top_k(chunks.max(-1), min(count, chunks.shape[1]))
    best = jnp.sort(best, axis=-1)  # in the vocabulary's order, which top_k keeps among equals
    values, place = lax.top_k(jnp.take_along_axis(chunks, best[..., None], axis=1).reshape(rows, -1), count)
    tokens = jnp.take_along_axis(best, place // CHUNK, axis=-1) * CHUNK + place % CHUNK
    return values, tokens.astype(jnp.int32)
