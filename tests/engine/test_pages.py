"""The page allocator: who owns which page, and what the prefix cache may give out."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cvllm_jax.engine.pages import PADDING_PAGE, PageAllocator, chain_hashes, first_page, most_pages


class Histories(RuleBasedStateMachine):
    """Any history of sequences that come, grow, share prefixes and go."""

    @initialize(pages=st.integers(2, 12), caching=st.booleans(), window=st.sampled_from([None, None, 1, 2, 3]))
    def start(self, pages, caching, window):
        self.pool = PageAllocator(pages, page_size=1, window=window, prefix_caching=caching)
        self.held = []  # one list of pages for each sequence
        self.contents = {}  # what a page was registered to hold

    @rule(count=st.integers(0, 12))
    def allocate(self, count):
        before = self.pool.available
        pages = self.pool.allocate(count)
        if count > before:
            assert pages is None and self.pool.available == before
            return
        in_use = {page for sequence in self.held for page in sequence}
        assert len(set(pages)) == count and not in_use & set(pages) and PADDING_PAGE not in pages
        assert self.pool.available == before - count
        for page in pages:
            self.contents.pop(page, None)
        self.held.append(pages)

    @rule(pick=st.integers(0, 100), block=st.integers(0, 5))
    def register(self, pick, block):
        if not self.held or not (pages := self.held[pick % len(self.held)]):
            return
        page, known = pages[pick % len(pages)], set(self.contents.values())
        self.pool.register(page, bytes([block]))
        if self.pool.prefix_caching and page not in self.contents and bytes([block]) not in known:
            self.contents[page] = bytes([block])

    @rule(blocks=st.lists(st.integers(0, 5), max_size=4))
    def match(self, blocks):
        before, window = self.pool.available, self.pool.window
        hashes, known = [bytes([block]) for block in blocks], set(self.contents.values())
        length = self.pool.cached_prefix(hashes)
        table = self.pool.hold(hashes[:length])
        assert (table.first, table.end) == (first_page(length, window, 1), length)
        assert [self.contents[page] for page in table.pages] == hashes[table.first : length]
        if self.pool.prefix_caching:
            for longer in range(length + 1, len(hashes) + 1):
                assert not known.issuperset(hashes[first_page(longer, window, 1) : longer])
        assert self.pool.available <= before
        self.held.append(table.pages)

    @rule(pick=st.integers(0, 100))
    def release(self, pick):
        if self.held:
            self.pool.release(self.held.pop(pick % len(self.held)))

    @rule()
    def forget(self):
        self.pool.forget()
        self.contents.clear()
        assert self.pool.cached == 0

    @rule(pick=st.integers(0, 20))
    def release_too_often(self, pick):
        owned = {page for sequence in self.held for page in sequence}
        page = pick % self.pool.num_pages
        if page not in owned:
            with pytest.raises(ValueError, match="more often than it was held"):
                self.pool.release([page])

    @invariant()
    def counts_add_up(self):
        owners = Counter(page for sequence in self.held for page in sequence)
        assert self.pool.available == self.pool.capacity - len(owners)
        assert 0 <= self.pool.cached <= self.pool.available
        cached_only = [page for page in self.contents if page not in owners]
        assert self.pool.cached == len(cached_only)

    def teardown(self):
        for pages in self.held:
            self.pool.release(pages)
        assert self.pool.available == self.pool.capacity
        assert len(set(self.pool.allocate(self.pool.capacity))) == self.pool.capacity


Histories.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase


def test_the_least_recently_used_page_is_given_up_first_and_ends_before_beginnings():
    pool = PageAllocator(5, page_size=1)
    first, second = pool.allocate(2), pool.allocate(2)
    for page, block in zip([*first, *second], [b"a", b"b", b"c", b"d"], strict=True):
        pool.register(page, block)
    pool.release(first)
    pool.release(second)
    assert pool.allocate(1) == [first[1]]
    assert pool.cached_prefix([b"a"]) == 1 and pool.hold([b"a"]).pages == [first[0]]  # used again: now the youngest
    pool.release([first[0]])
    assert pool.allocate(2) == [second[1], second[0]]


def test_a_pool_without_prefix_caching_caches_nothing():
    pool = PageAllocator(3, page_size=1, prefix_caching=False)
    pages = pool.allocate(1)
    pool.register(pages[0], b"a")
    pool.release(pages)
    assert pool.cached_prefix([b"a"]) == 0 and pool.cached == 0 and pool.available == 2


def test_a_pool_needs_a_page_besides_the_padding_page():
    with pytest.raises(ValueError, match="at least 2 pages"):
        PageAllocator(1, page_size=1)


@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 9), st.integers(1, 20))
def test_a_window_and_a_step_are_all_that_a_sequence_holds(length, window, size, step):
    """However far it has come, and where a step's tokens may not be read yet when the next one is planned."""
    held = []
    for computed in range(length):
        unread = max(computed - step, 0) // size
        held.append(-(-min(length, computed + step) // size) - min(first_page(computed, window, size), unread))
    most = max(held)
    assert most <= most_pages(length, window, size, step) <= most + 1
    assert most_pages(length, None, size, step) == most_pages(length, window, size, None) == -(-length // size)


@given(
    st.lists(st.integers(0, 2**31 - 1), max_size=40), st.lists(st.integers(0, 2**31 - 1), max_size=40),
    st.sampled_from([1, 2, 4, 16]), st.integers(0, 5),
)  # fmt: skip
def test_hashes_are_equal_exactly_where_prefixes_are(left, right, size, known):
    common = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    a, b = chain_hashes(b"model", left, size), chain_hashes(b"model", right, size)
    assert len(a) == len(left) // size
    equal = sum(x == y for x, y in zip(a, b, strict=False))
    assert equal == common // size and a[:equal] == b[:equal]
    assert chain_hashes(b"model", left, size, a[:known]) == a
    assert not set(chain_hashes(b"other", left, size)) & set(a)
