"""A runner without a device, to prove schedules with: it writes down what each page holds and reads it back.

The next token is a function of every token before it that any cache group attends to, read from the pages of its block
table, and of the request's seed. A plan that mixes up pages, positions or slots, or writes over a page that another
sequence needs, gives other tokens than :func:`alone`.
"""

from __future__ import annotations

import pickle
import zlib
from dataclasses import replace

from cvllm_jax.engine.pages import PADDING_PAGE, PageAllocator
from cvllm_jax.engine.plan import StepOutput, check_plan
from cvllm_jax.engine.scheduler import Scheduler
from cvllm_jax.engine.sequence import Sampled, Sequence
from cvllm_jax.params import GenerationParams, RequestHandle, RequestUpdate

VOCABULARY = 50
END = 0


def next_token(tokens, seed=0):
    """About one choice in twenty ends the answer."""
    return zlib.crc32(repr((tuple(tokens), seed)).encode()) % VOCABULARY


def alone(prompt, max_tokens, *, seed=0, ends=(END,), min_tokens=0, windows=(None,)):
    """What a request generates by itself."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        seen = [token for window in windows for token in tokens[-(window or 0) :]]
        token = choose(seen, seed, len(tokens) - len(prompt) < min_tokens)
        if token in ends:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


def choose(tokens, seed, forbid_end):
    token = next_token(tokens, seed)
    return token or 1 if forbid_end else token


class FakeRunner:
    """Carries out plans in the order of their dispatch. Every cache group remembers the tokens by itself.

    Arguments:
      pools: of each cache group the pages and the window.
    """

    def __init__(self, page_size, pools):
        self.page_size = page_size
        self.pools = pools
        self.forget()
        self.last = {}  # slot: last token
        self.plans = []

    def forget(self):
        self.memory = [[[None] * self.page_size for _ in range(pages)] for pages, _ in self.pools]

    def dispatch(self, plan):
        check_plan(plan, self.pools, self.page_size, 1000)
        self.plans.append(plan)
        slots = [row.slot for row in plan.decode] + [block.slot for block in plan.prefill if block.choose]
        assert len(slots) == len(set(slots))
        chosen = [[] for _ in plan.decode]
        for step in range(plan.decode_steps):
            live = [(row, tokens) for row, tokens in zip(plan.decode, chosen, strict=True) if row.steps > step]
            for row, _ in live:
                self.write(row.tables, row.position + step, [self.last[row.slot], *row.drafts])
            for row, tokens in live:
                tokens.append(self.choose(row, row.position + step + 1, row.forbid_end > step))
                for ahead, draft in enumerate(row.drafts, 1):
                    if tokens[-1].token != draft:
                        break
                    tokens.append(self.choose(row, row.position + ahead + 1, row.forbid_end > ahead))
        for block in plan.prefill:
            self.write(block.tables, block.start, block.tokens)
        prefill = [self.choose(b, b.start + len(b.tokens), b.forbid_end > 0) for b in plan.prefill if b.choose]
        return StepOutput(decode=chosen, prefill=prefill)

    def start(self, plan):
        """The first half of a step; what it computes is the same, so everything is left to the second."""
        assert plan.decode and plan.decode_steps == 1
        return plan

    def finish(self, plan, masks):
        """The second half. A row that got no mask though its sequence is constrained is void: any token will do."""
        rows = [replace(row, mask=mask) for row, mask in zip(plan.decode, masks, strict=True)]
        void = {i for i, row in enumerate(rows) if row.sampling.constrained and row.mask is None}
        kept = replace(plan, decode=tuple(row for i, row in enumerate(rows) if i not in void))
        output = self.dispatch(kept)
        for index in sorted(void):
            row = rows[index]
            self.write(row.tables, row.position, [self.last[row.slot]])
            output.decode.insert(index, [Sampled(END)])
        return output

    def write(self, tables, start, tokens):
        for table, memory in zip(tables, self.memory, strict=True):
            for position, token in enumerate(tokens, start):
                page = table.pages[position // self.page_size - table.first]
                assert page != PADDING_PAGE
                memory[page][position % self.page_size] = token

    def read(self, row, length):
        """What each group remembers of a sequence, one after the other."""
        for table, memory, (_, window) in zip(row.tables, self.memory, self.pools, strict=True):
            for position in range(0 if window is None else max(0, length - window), length):
                assert position >= table.first * self.page_size
                page = table.pages[position // self.page_size - table.first]
                yield memory[page][position % self.page_size]

    def choose(self, row, length, forbid_end):
        known = list(self.read(row, length))
        if row.mask is None:
            assert not row.sampling.constrained
            token = choose(known, row.sampling.seed[0], forbid_end)
        else:
            token, text = pickle.loads(row.mask)
            seen = [token for _, window in self.pools for token in text[-(window or 0) :]]
            assert known == seen  # the mask belongs to the text that the pages hold
        self.last[row.slot] = token
        return Sampled(token)


class ScriptedConstraint:
    """Allows one token at each place, and sometimes knows the next few."""

    def __init__(self, prompt, length):
        self.prompt, self.length, self.tokens = list(prompt), length, []

    def _next(self, tokens):
        return 1 + zlib.crc32(repr(tokens).encode()) % (VOCABULARY - 1)

    @property
    def finished(self):
        return len(self.tokens) == self.length

    def mask(self):
        return pickle.dumps((self._next(self.tokens), self.prompt + self.tokens))

    def take(self, token):
        assert token == self._next(self.tokens)
        self.tokens.append(token)

    def forced(self):
        ahead = list(self.tokens)
        for _ in range(min(self._next(ahead) % 9, self.length - len(ahead))):
            ahead.append(self._next(ahead))
        return ahead[len(self.tokens) :]

    def whole(self):
        tokens = []
        while len(tokens) < self.length:
            tokens.append(self._next(tokens))
        return tokens


class NoText:
    def push(self, token):
        return ""

    def finish(self):
        return ""


class Serving:
    """The engine's loop over a scheduler and a fake runner, one step at a time, ``ahead`` steps unread."""

    def __init__(
        self, *, pages=20, page_size=4, slots=4, block=4, budget=8, chunked=True, caching=True, ahead=1,
        steps=1, halves=False, windows=(None,), drafts=0, rows=(2, 8),
    ):  # fmt: skip
        counts = [pages] * len(windows) if isinstance(pages, int) else pages
        self.pools = [
            PageAllocator(count + 1, page_size=page_size, window=window, prefix_caching=caching)
            for count, window in zip(counts, windows, strict=True)
        ]
        self.pool = self.pools[0]
        self.scheduler = Scheduler(
            self.pools, slots=slots, block=block, prefill_budget=budget, chunked=chunked, decode_steps=steps,
            drafts=drafts, rows=rows,
        )
        self.runner = FakeRunner(page_size, [(pool.num_pages, pool.window) for pool in self.pools])
        self.ahead = ahead
        self.halves = halves
        self.unread = []
        self.updates = {}
        self.sequences = {}

    def add(self, prompt, max_tokens=8, *, seed=0, ignore_eos=False, constraint=None, **params):
        handle = RequestHandle(len(self.sequences) + 1)
        sequence = Sequence(
            handle=handle, params=GenerationParams(**params), tokens=list(prompt), prompt_length=len(prompt),
            max_tokens=max_tokens, end_tokens=frozenset() if ignore_eos else frozenset({END}), seed=(seed, 0),
            constraint=constraint, decoder=NoText(), report=self.updates.setdefault(handle.id, []).append,
        )  # fmt: skip
        self.sequences[handle.id] = sequence
        self.scheduler.add(sequence)
        return handle.id

    def cancel(self, request):
        self.scheduler.cancel(self.sequences[request])

    def step(self):
        """Plan and dispatch, then read all but ``ahead`` steps; False if there was nothing to do."""
        waits = self.scheduler.waits_for_tokens
        halves = self.scheduler.waits_for_masks and self.halves and self.ahead > 0
        while self.unread and waits and not halves:
            self.scheduler.commit(self.unread.pop(0))
        plan = self.scheduler.plan(masks_follow=halves)
        if plan is not None and halves and plan.decode:
            started = self.runner.start(plan)
            while self.unread:
                self.scheduler.commit(self.unread.pop(0))
            self.unread.append(self.runner.finish(started, self.scheduler.masks()))
        elif plan is not None:
            self.unread.append(self.runner.dispatch(plan))
        worked = bool(self.unread)
        while len(self.unread) > (self.ahead if plan is not None else 0):
            self.scheduler.commit(self.unread.pop(0))
        return worked

    def fail_step(self):
        """Plan a step that raises on the device: the steps before it are whole, the buffers are lost."""
        if self.scheduler.plan() is None:
            return
        while self.unread:
            self.scheduler.commit(self.unread.pop(0))
        self.runner.forget()
        self.runner.last.clear()
        self.scheduler.fail(RuntimeError("no more"))

    def run(self, steps=5000):
        for _ in range(steps):
            if not self.step():
                assert self.scheduler.idle
                assert self.all_free()
                return
        raise AssertionError("the requests do not end")

    def all_free(self):
        return all(pool.available == pool.capacity for pool in self.pools)

    def output(self, request):
        """The one final update, which must be the last."""
        *before, last = self.updates[request]
        assert all(isinstance(update, RequestUpdate.Token) for update in before)
        assert [update.token for update in before] == last.output.tokens
        return last.output
