"""Names for the tools of several servers."""

import re
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cvllm_jax.mcp import unique_names


def test_names_stay_bare_where_they_are_unique():
    tools = [("fs", "read_file"), ("git", "log"), ("fs", "search"), ("git", "search")]
    assert unique_names(tools) == ["read_file", "log", "fs__search", "git__search"]
    assert unique_names(tools, taken=["log"]) == ["read_file", "git__log", "fs__search", "git__search"]


def test_names_are_those_of_functions():
    assert unique_names([("s", "files/read.all"), ("s", ""), ("s", "größe")]) == ["files_read_all", "tool", "gr__e"]
    assert unique_names([("s", "a.b"), ("s", "a/b")]) == ["s__a_b", "s__a_b_2"]
    (long,) = unique_names([("s", "x" * 100)])
    assert len(long) == 64 and long.startswith("x" * 50)


NAME = st.text(alphabet="ab_.é ", max_size=4) | st.text(max_size=80)


@given(st.lists(st.tuples(NAME, NAME), max_size=12), st.lists(NAME, max_size=4))
def test_any_names(tools, taken):
    names = unique_names(tools, taken)
    assert len(names) == len(tools) == len(set(names))
    assert not set(names) & set(taken)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in names)
    bare = Counter(name for _, name in tools)
    for (_, name), given_name in zip(tools, names, strict=True):
        is_valid = re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name)
        alike = sum(re.sub(r"[^A-Za-z0-9_-]", "_", other) == name for other in bare.elements())
        if is_valid and alike == 1 and name not in taken and name != "tool":
            assert given_name == name
