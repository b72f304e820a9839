"""What a step costs in counts stays within bench/counts.json; `python -m bench.counts --write` makes new limits."""

import json

import pytest

from bench.counts import CASES, LIMITS, TOLERANCE, count, exceeded


@pytest.mark.parametrize("case", [pytest.param("f32", marks=pytest.mark.slow), "int8"])
def test_steps_cost_no_more_than_their_limits(case):
    limits = json.loads(LIMITS.read_text())["limits"]
    assert limits.keys() == CASES.keys()
    found = count(**CASES[case])
    assert {place: set(counts) for place, counts in found.items()} == {
        place: set(counts) for place, counts in limits[case].items()
    }
    assert exceeded(found, limits[case]) == [], "if it has to be: python -m bench.counts --write"


def test_more_than_a_limit_is_told():
    limits = {"decode 8": dict.fromkeys(TOLERANCE, 100.0)}
    assert exceeded(limits, limits) == []
    more = {"decode 8": {name: 100.0 * (1 + allowed) + 1 for name, allowed in TOLERANCE.items()}}
    assert len(exceeded(more, limits)) == len(TOLERANCE)
    assert "decode 8: dispatches is 101, and the limit is 100" in exceeded(more, limits)
