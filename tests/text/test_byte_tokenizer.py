"""The tokenizer of models with random weights."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvllm_jax import ModelLoadError
from cvllm_jax.text import Detokenizer
from cvllm_jax.text.byte_tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer(1000)


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_any_text_is_its_bytes_and_comes_back(text):
    ids = TOKENIZER.encode(text)
    assert ids == list(text.encode())
    assert TOKENIZER.decode(ids) == text


def test_ids_past_the_bytes_are_their_number_and_the_last_one_ends():
    assert TOKENIZER.decode([256, 998]) == " 256 998"
    assert (TOKENIZER.vocab_size, TOKENIZER.eos_token_id, TOKENIZER.bos_token_id) == (1000, 999, None)
    assert TOKENIZER.is_special(999) and not TOKENIZER.is_special(10)
    assert TOKENIZER.decode([104, 105, 999]) == "hi"


def test_streamed_text_is_the_whole_text():
    detokenizer = Detokenizer(TOKENIZER)
    ids = [*"é".encode(), 500, 0xF0, 0x9F, 0x98, 0x80]
    pieces = [detokenizer.push(token) for token in ids]
    assert "".join(pieces) + detokenizer.finish() == TOKENIZER.decode(ids) == "é 500😀"


@pytest.mark.parametrize("size", [1, 256])
def test_too_small_vocabularies_are_refused(size):
    with pytest.raises(ModelLoadError, match=f"at least 257 tokens, and this model has {size}"):
        byte_tokenizer(size)
