"""Lists of tensors in errors: every name is in them, however few entries there are."""

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from cvllm_jax.checkpoints.name_lists import listed


def expanded(entry):
    """The names that an entry stands for."""
    parts = []
    for part in entry.split("."):
        ranges = [re.fullmatch(r"(\d+)(?:-(\d+))?", each) for each in part.split(",")]
        if not all(ranges):
            parts.append([part])
            continue
        parts.append([str(n) for each in ranges for n in range(int(each[1]), int(each[2] or each[1]) + 1)])
    return {".".join(combination) for combination in itertools.product(*parts)}


NUMBERS = st.sampled_from(["0", "1", "2", "3", "7", "10", "11"])
NAMES = st.builds(
    lambda form, *numbers: form.format(*numbers),
    st.sampled_from(["layers.{}.w", "layers.{}.experts.{}.w", "{}", "norm", "a{}.b", "{}.{}.{}"]), NUMBERS, NUMBERS,
    NUMBERS,
)  # fmt: skip


@given(st.sets(NAMES, max_size=12))
def test_every_name_is_there(names):
    entries = [] if not names else listed(names).split(", ")
    assert len(entries) <= len(names)
    covered = [name for entry in entries for name in expanded(entry)]
    assert sorted(covered) == sorted(names)


def test_layers_and_experts_are_one_entry():
    names = [f"layers.{layer}.experts.{expert}.w{part}" for layer in range(4) for expert in range(8) for part in "12"]
    assert listed(names) == "layers.0-3.experts.0-7.w1, layers.0-3.experts.0-7.w2"
    names.remove("layers.2.experts.5.w1")
    assert "layers.0-1,3.experts.0-7.w1, layers.2.experts.0-4,6-7.w1" in listed(names)


def test_odd_names_stay_on_one_line():
    assert "\n" not in listed(["a\nb", "{0}", "x" * 10**6, "00.1", "1.", ".1", "\x00"])
    assert len(listed(["x" * 10**6])) == 120
    assert listed(["{0}.5", "{}"]) == "{0}.5, {}"
