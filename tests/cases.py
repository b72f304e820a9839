"""Parametrised cases of which some are for the whole suite alone."""

import pytest


def core(cases, count):
    """The first ``count`` cases for every run, the others marked slow."""
    return [
        each if n < count else pytest.param(*(each if isinstance(each, tuple) else (each,)), marks=pytest.mark.slow)
        for n, each in enumerate(cases)
    ]
