"""Every public name says what it is."""

import ast
import importlib
import importlib.resources
import inspect
import itertools
import re
import sys
from typing import TypeAliasType

import pytest

PACKAGES = ("cvllm_jax", "cvllm_jax.openai", "cvllm_jax.mcp", "cvllm_jax.responses", "cvllm_jax.grammar")
PUBLIC = [(package, name) for package in PACKAGES for name in importlib.import_module(package).__all__]

#: Methods that set the field of their name, which is documented where the field is.
SETTER = re.compile(r"with_\w+")


def docstring_of(value, name):
    if isinstance(value, TypeAliasType):
        tree = ast.parse(inspect.getsource(sys.modules[value.__module__])).body
        for statement, following in itertools.pairwise(tree):
            if isinstance(statement, ast.TypeAlias) and statement.name.id == name and isinstance(following, ast.Expr):
                return following.value.value
        return ""
    own = value.__dict__.get("__doc__") if isinstance(value, type) else value.__doc__
    return "" if own is None or own.startswith(f"{name}(") else own  # which dataclasses make themselves


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_public_names_have_docstrings_that_say_more_than_the_name(package, name):
    text = docstring_of(getattr(importlib.import_module(package), name), name)
    words = set(re.findall(r"[a-z]+", text.lower()))
    restated = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+", name)} | {"a", "an", "the", "of", "for"}
    assert len(words - restated) >= 3, text


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_methods_of_public_classes_have_docstrings(package, name):
    kind = getattr(importlib.import_module(package), name)
    if not isinstance(kind, type):
        return
    silent = []
    for method, value in vars(kind).items():
        function = getattr(value, "__func__", getattr(value, "fget", value))
        if not method.startswith("_") and inspect.isfunction(function) and not SETTER.fullmatch(method):
            silent += [] if function.__doc__ else [method]
    assert not silent


def test_every_package_is_marked_as_typed():
    for package in ("cvllm_jax", "pallas_kernels", "server"):
        assert (importlib.resources.files(package) / "py.typed").is_file()
