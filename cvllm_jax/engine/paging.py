"""What sequences hold of the pools of all cache groups, and whether there is enough for a next step.

Each cache group (:mod:`cvllm_jax.models.cache_groups`) has a pool of its own, and a sequence a block table in each of
them. Where layers attend to all, a sequence has the pages of all its known tokens from the beginning, so that it is not
given up half read; behind a window it has those of the window and of its next step.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from itertools import cycle

from cvllm_jax.engine.pages import BlockHash, PageAllocator, PageRun, chain_hashes, most_pages
from cvllm_jax.engine.sequence import Sequence

__all__ = ["Paging", "step_tokens"]


def step_tokens(block: int, prefill_budget: int, *, chunked: bool, decode_steps: int) -> int | None:
    """Tokens of a running sequence that there are always pages for: a part of its prompt, or those that it decodes in
    one go. None for the whole prompt."""
    return max(min(block, prefill_budget), decode_steps) if chunked else None


class Paging:
    """The pools, and the block tables of sequences.

    Arguments:
      pools: one for each cache group, of one page size.
      step: see :func:`step_tokens`.
      hash_root: distinguishes caches of other models and types.
    """

    def __init__(self, pools: Items[PageAllocator], *, step: int | None, hash_root: bytes) -> None:
        self.pools = tuple(pools)
        self._page_size = pools[0].page_size
        self._step = step
        self._root = hash_root

    def missing(self, sequence: Sequence, steps: int = 0) -> list[int]:
        """Pages that a running sequence lacks for its next step in each group.

        Arguments:
          steps: how many tokens it decodes, if it does.
        """
        size, tables = self._page_size, sequence.tables
        if sequence.prefilled:  # what every sequence asks in every step
            end = -(-(sequence.computed + steps) // size)
            return [max(0, end - table.end) for table in tables]
        known = len(sequence.tokens)
        soon = known if self._step is None else min(known, sequence.computed + self._step)
        return [
            max(0, -(-(known if pool.window is None else soon) // size) - table.end)
            for pool, table in zip(self.pools, tables, strict=True)
        ]

    def fits(self, counts: Items[int]) -> bool:
        """Whether so many pages of each group can be had at once."""
        return all(count <= pool.available for pool, count in zip(self.pools, counts, strict=False))

    def grow(self, sequence: Sequence, steps: int = 0) -> bool:
        """Give a sequence what it lacks for its next step; False, and nothing changed, if a group has too few pages."""
        missing = self.missing(sequence, steps)
        if any(missing):
            if not self.fits(missing):
                return False
            self._extend(sequence, missing)
        return True

    def reach(self, sequence: Sequence, tokens: int) -> int:
        """How many of so many next tokens of a prompt there are pages for; the sequence has them then."""
        size, tables = self._page_size, sequence.tables
        stop = min(sequence.computed + tokens, len(sequence.tokens))
        stop = min(stop, *((t.end + pool.available) * size for pool, t in zip(self.pools, tables, strict=True)))
        self._extend(sequence, [max(0, -(-stop // size) - table.end) for table in tables])
        return max(0, stop - sequence.computed)

    def _extend(self, sequence: Sequence, counts: Items[int]) -> None:
        for pool, table, count in zip(self.pools, sequence.tables, counts, strict=True):
            pages = pool.allocate(count)
            assert pages is not None
            table.pages += pages

    def runs(self, sequence: Sequence, stop: int) -> tuple[PageRun, ...]:
        """The block tables as far as tokens before position ``stop`` need them."""
        return tuple(table.run(-(-stop // self._page_size)) for table in sequence.tables)

    def admit(self, sequence: Sequence, running: Items[Sequence]) -> bool:
        """Give a waiting sequence the longest prefix that is cached, and the pages of its first step.

        False, and nothing changed, if it and those that run could not go on together for their known tokens and one
        page each: the newcomer would be preempted at once.
        """
        size = self._page_size
        sequence.hashes = chain_hashes(self._root, sequence.tokens, size, sequence.hashes)
        # the last token is always computed: its logits choose the next one
        cached = self._cached_prefix(sequence.hashes[: (len(sequence.tokens) - 1) // size])
        sequence.tables = [pool.hold(sequence.hashes[:cached]) for pool in self.pools]
        sequence.registered, sequence.computed = cached, cached * size
        missing = self.missing(sequence)
        for group, pool in enumerate(self.pools):
            wanted = max(missing[group], self._wants(group, sequence))
            wanted += sum(self._wants(group, other) for other in running) + len(running)
            if wanted > pool.available:
                self.release(sequence)
                return False
        self._extend(sequence, missing)
        return True

    def _cached_prefix(self, hashes: list[BlockHash]) -> int:
        """The most leading blocks after which a sequence can go on in every group."""
        length, agreed = len(hashes), 0
        for pool in cycle(self.pools):
            cached = pool.cached_prefix(hashes[:length])
            agreed = agreed + 1 if cached == length else 1
            length = cached
            if agreed == len(self.pools):
                break
        return length

    def _wants(self, group: int, sequence: Sequence) -> int:
        """Pages that a sequence will hold for its known tokens at some time and does not hold yet."""
        pool, table = self.pools[group], sequence.tables[group]
        length, size = len(sequence.tokens), self._page_size
        most = most_pages(length, pool.window, size, self._step)
        return max(0, min(most - len(table.pages), -(-length // size) - table.end))

    def leave(self, running: Items[Sequence]) -> None:
        """Give up the pages that windows have left, once the prefix cache knows them."""
        for group, pool in enumerate(self.pools):
            if pool.window is not None:
                for sequence in running:
                    left = min(pool.first_page(sequence.computed), sequence.registered)
                    pool.release(sequence.tables[group].leave(left))

    def register(self, sequence: Sequence) -> None:
        """Offer full pages to the prefix cache: those whose tokens are known and whose keys are on their way."""
        full = min(sequence.computed, len(sequence.tokens)) // self._page_size
        if full <= sequence.registered:
            return
        sequence.hashes = chain_hashes(self._root, sequence.tokens, self._page_size, sequence.hashes)
        for index in range(sequence.registered, full):
            for pool, table in zip(self.pools, sequence.tables, strict=True):
                pool.register(table.page(index), sequence.hashes[index])
        sequence.registered = full

    def release(self, sequence: Sequence) -> None:
        """Give back all pages of a sequence, which starts over if it ever runs again."""
        for pool, table in zip(self.pools, sequence.tables, strict=True):
            pool.release(table.pages)
        sequence.tables = []
        sequence.computed = sequence.registered = 0

    def forget(self) -> None:
        """Empty the prefix cache of every group."""
        for pool in self.pools:
            pool.forget()
