"""Who owns which page of the KV cache, and which pages hold a known prefix.

A page is free, held by one or more sequences, or cached: held by nobody but still valid for a prompt that begins
with the same tokens. Cached pages are given up oldest first when free ones run out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

__all__ = ["PADDING_PAGE", "BlockHash", "PageAllocator", "chain_hashes", "first_page"]

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


class PageAllocator:
    """Free list, reference counts and the prefix cache of one pool of pages."""

    def __init__(self, num_pages: int, *, prefix_caching: bool = True) -> None:
        if num_pages < 2:
            raise ValueError(f"a pool needs at least 2 pages (one is padding), not {num_pages}")
        self.num_pages = num_pages
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

    def match(self, hashes: Sequence[BlockHash], *, window: int | None = None, page_size: int = 1) -> list[int]:
        """Hold the pages of the longest cached prefix of ``hashes`` and return them in order.

        Arguments:
          window: what comes next attends to this many latest positions only, in pages of ``page_size``: earlier pages
            need not be cached, and the padding page stands for them.
        """
        if not self.prefix_caching:
            return []
        length = cached = 0  # of the prefix; of the blocks that are cached in a row up to here
        for count, block in enumerate(hashes, 1):
            cached = cached + 1 if block in self._page_of else 0
            if cached >= count - first_page(count * page_size, window, page_size):
                length = count
            elif window is None:
                break
        first = first_page(length * page_size, window, page_size)
        pages = [self._page_of[block] for block in hashes[first:length]]
        for page in pages:
            if self._holders[page] == 0:
                del self._cached[page]
            self._holders[page] += 1
        return [PADDING_PAGE] * first + pages

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
