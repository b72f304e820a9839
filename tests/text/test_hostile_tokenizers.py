"""A ``tokenizer.json`` with values that make no sense: it tokenizes, or is refused in one sentence."""

import copy
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvllm_jax.errors import Error
from cvllm_jax.text import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
SOURCES = {name: next(GOLDEN.glob(f"*/{name}/tokenizer.json")) for name in ("llama_gqa_tied", "bert_cls")}
NONSENSE = st.sampled_from(
    [None, True, 0, -1, 2**31, 2**32 - 1, 2**40, 1e300, "", "x", "(", "(a+)+$", [], {}, [[]], {"type": "Sequence"}]
)


def places(value, at=()):
    """Ways into a document, the first of each long list or object."""
    if at:
        yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(inner)[:20]:
        yield from places(item, (*at, key))


@pytest.mark.parametrize("name", SOURCES)
@settings(max_examples=60, deadline=2000)
@given(data=st.data())
def test_nonsense(name, data):
    document = json.loads(SOURCES[name].read_text())
    choices = list(places(copy.deepcopy(document)))
    for place in data.draw(st.lists(st.sampled_from(choices), min_size=1, max_size=3)):
        target = document
        try:
            for key in place[:-1]:
                target = target[key]
            target[place[-1]] = data.draw(NONSENSE)
        except (TypeError, LookupError):  # an earlier change took it away
            continue
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_text(json.dumps(document))
        try:
            tokenizer = Tokenizer.from_file(path)
            ids = tokenizer.encode("Hello <|im_end|> wörld\n x") + tokenizer.encode("<|im_end|>a", allow_special=True)
            assert all(0 <= token < tokenizer.vocab_size for token in ids)
            assert isinstance(tokenizer.decode(ids), str)
        except Error as refused:
            message = str(refused)
        else:
            return
    assert "\n" not in message
    assert len(message) < 1000
