"""Stop strings: the same text whatever the pieces, and never a character too many or taken back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvllm_jax.engine.stopping import StopStrings

stops = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)
pieces = st.lists(st.text("abc", max_size=4), max_size=8)


def whole(text, stops):
    """What is right, in one go: the stop string that ends first, and the longest of those."""
    found = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in stops if stop in text]
    if not found:
        return text, None
    _, at, stop = min(found)
    return text[:at], stop


@given(pieces, stops)
def test_pieces_give_what_the_whole_text_gives(parts, stops):
    stream = StopStrings(stops)
    given_out = [stream.push(part) for part in parts] + [stream.push("", final=True)]
    assert ("".join(given_out), stream.matched) == whole("".join(parts), stops)


@given(st.text("abc", max_size=20), stops)
def test_character_by_character_nothing_beyond_a_stop_appears(text, stops):
    stream = StopStrings(stops)
    out = ""
    end = whole(text, stops)[0]
    for index, character in enumerate(text):
        out += stream.push(character)
        assert end.startswith(out)
        held = text[len(out) : index + 1]
        if stream.matched is None and held:  # all but what may begin a stop string is out
            assert any(stop.startswith(held) for stop in stops)


def test_a_tail_that_may_begin_a_stop_is_held_back_and_given_at_the_end():
    stream = StopStrings(["END"])
    assert stream.push("text E") == "text "
    assert stream.push("N") == ""
    assert stream.push("", final=True) == "EN"
    assert stream.matched is None


def test_after_a_match_nothing_more_is_given():
    stream = StopStrings(["b"])
    assert stream.push("abc") == "a"
    assert stream.matched == "b"
    assert stream.push("more") == "" and stream.push("", final=True) == ""


@pytest.mark.parametrize(("stops", "matched", "text"), [
    (["ab", "abc"], "ab", ""), (["bc", "abc"], "abc", ""), (["d", "bc"], "bc", "a"),
])  # fmt: skip
def test_of_several_stops_the_first_to_be_complete_counts_and_the_longest_of_those(stops, matched, text):
    stream = StopStrings(stops)
    assert stream.push("abcd") == text
    assert stream.matched == matched
