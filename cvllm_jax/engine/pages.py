"""Who owns which page of a cache group, and which pages hold a known prefix.

A page is free, held by one or more sequences, or cached: held by nobody but still valid for a prompt that begins
with the same tokens. Cached pages are given up oldest first when free ones run out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

__all__ = [
    "PADDING_PAGE", "BlockHash", "BlockTable", "PageAllocator", "PageRun", "chain_hashes", "first_page", "most_pages",
]  # fmt: skip

#: Takes the writes of padding tokens; never given to a sequence.
PADDING_PAGE = 0

#: Names one full page of tokens together with everything before it.
type BlockHash = bytes


def chain_hashes(
    root: bytes, tokens: Sequence[int], page_size: int, known: Sequence[BlockHash] = ()
) -> list[BlockHash]:
    """Hashes of every full page of ``tokens``; ``known`` are those of its first pages.

    A hash covers its parent, so equal hashes mean equal prefixes; 128 bits keep a hostile prompt from colliding.
    """
    hashes = list(known)
    for index in range(len(hashes), len(tokens) // page_size):
        parent = hashes[-1] if hashes else root
        block = tokens[index * page_size : (index + 1) * page_size]
        data = b"".join(token.to_bytes(4, "little") for token in block)
        hashes.append(blake2b(data, key=parent[:16], digest_size=16).digest())
    return hashes


def first_page(position: int, window: int | None, page_size: int) -> int:
    """Index of the first page that a token at this position, or a later one, attends to."""
    return 0 if window is None else max(0, position - window + 1) // page_size


def most_pages(length: int, window: int | None, page_size: int, step: int | None) -> int:
    """Pages that a sequence of so many tokens holds at most in one cache group.

    Arguments:
      step: tokens that a step computes of it at most; those of the step before may not be read yet. None for all.
    """
    whole = -(-length // page_size)
    if window is None or step is None:
        return whole
    return min(whole, -(-(max(window - 1, step) + step - 1) // page_size) + 1)


class PageRun(NamedTuple):
    """Entries of a block table that follow one another: the index of the first, and their pages."""

    first: int
    pages: tuple[int, ...]


@dataclass(slots=True)
class BlockTable:
    """The pages of one sequence in one cache group, in order, without those at the front that a window has left."""

    first: int = 0
    """Index of the first page that it holds."""
    pages: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        """Index after the last page."""
        return self.first + len(self.pages)

    def page(self, index: int) -> int:
        return self.pages[index - self.first]

    def leave(self, index: int) -> list[int]:
        """Take out the pages before an index."""
        left = self.pages[: max(0, index - self.first)]
        del self.pages[: len(left)]
        self.first += len(left)
        return left

    def run(self, end: int | None = None) -> PageRun:
        """What there is before index ``end``, for a plan."""
        return PageRun(self.first, tuple(self.pages if end is None else self.pages[: end - self.first]))


class PageAllocator:
    """Free list, reference counts and the prefix cache of one pool of pages.

    Arguments:
      num_pages: the padding page included.
      page_size: tokens in a page.
      window: no token attends to more than this many latest positions of what the pages hold; None for all.
    """

    def __init__(
        self, num_pages: int, *, page_size: int, window: int | None = None, prefix_caching: bool = True
    ) -> None:
        if num_pages < 2:
            raise ValueError(f"a pool needs at least 2 pages (one is padding), not {num_pages}")
        self.num_pages = num_pages
        self.page_size = page_size
        self.window = window
        self.prefix_caching = prefix_caching
        self._holders = [0] * num_pages
        self._free = list(range(num_pages - 1, PADDING_PAGE, -1))
        self._page_of: dict[BlockHash, int] = {}
        self._hash_of: dict[int, BlockHash] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()  # held by nobody, least recently used first

    @property
    def capacity(self) -> int:
        """Pages that sequences can hold in all."""
        return self.num_pages - 1

    @property
    def available(self) -> int:
        """Pages that can be allocated now, cached ones included."""
        return len(self._free) + len(self._cached)

    @property
    def cached(self) -> int:
        return len(self._cached)

    def allocate(self, count: int) -> list[int] | None:
        """``count`` pages, each held once; None, and nothing changed, if there are not so many."""
        if count > self.available:
            return None
        pages = []
        for _ in range(count):
            if self._free:
                page = self._free.pop()
            else:
                page, _ = self._cached.popitem(last=False)
                del self._page_of[self._hash_of.pop(page)]
            self._holders[page] = 1
            pages.append(page)
        return pages

    def first_page(self, position: int) -> int:
        """Index of the first page that a token at this position, or a later one, attends to."""
        return first_page(position, self.window, self.page_size)

    def cached_prefix(self, hashes: Sequence[BlockHash]) -> int:
        """The most leading blocks after which a sequence can go on: what it attends to then is cached."""
        length = cached = 0  # of the prefix; of the blocks that are cached in a row up to here
        if not self.prefix_caching:
            return 0
        for count, block in enumerate(hashes, 1):
            cached = cached + 1 if block in self._page_of else 0
            if cached >= count - self.first_page(count * self.page_size):
                length = count
            elif self.window is None:
                break
        return length

    def hold(self, hashes: Sequence[BlockHash]) -> BlockTable:
        """Hold the pages that a sequence attends to when it goes on after these blocks, which are cached as far."""
        first = self.first_page(len(hashes) * self.page_size)
        pages = [self._page_of[block] for block in hashes[first:]]
        for page in pages:
            if self._holders[page] == 0:
                del self._cached[page]
            self._holders[page] += 1
        return BlockTable(first, pages)

    def register(self, page: int, block: BlockHash) -> None:
        """Say that a held page is full and holds ``block``. A block that another page holds already stays there."""
        if self.prefix_caching and block not in self._page_of and page not in self._hash_of:
            self._page_of[block] = page
            self._hash_of[page] = block

    def release(self, pages: Sequence[int]) -> None:
        """Give back one hold on each page. The end of a prefix is given up before its beginning."""
        for page in reversed(pages):
            if self._holders[page] <= 0:
                raise ValueError(f"page {page} is released more often than it was held")
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            if page in self._hash_of:
                self._cached[page] = None
            else:
                self._free.append(page)

    def forget(self) -> None:
        """Empty the prefix cache: what the pages hold is no longer valid. Held pages stay held."""
        self._free.extend(self._cached)
        self._cached.clear()
        self._page_of.clear()
        self._hash_of.clear()
