"""Counters where Jinja has no hook: loops, macros, ``~``, comparisons, slices and keys.

The parsed template is rewritten so that these pass through filters whose names no template can spell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.visitor import NodeTransformer

from cvllm_jax.text.template_budget import spend, spend_text, spend_value

__all__ = ["COUNTERS", "CountingTransformer"]


class CountingTransformer(NodeTransformer):
    """Rewrites a template's tree in place."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        self.generic_visit(node)
        match node:
            case nodes.For():
                if node.test is not None:
                    node.test = nodes.And(_turn(node), node.test, lineno=node.lineno)
                _count_body(node)
            case nodes.Macro() | nodes.CallBlock() | nodes.Block():
                _count_body(node)
            case nodes.Concat():
                return _through(" concat", nodes.List(node.nodes, lineno=node.lineno))
            case nodes.Compare():
                _charge_comparison(node)
            case nodes.Dict():
                for pair in node.items:
                    if not isinstance(pair.key, nodes.Const):
                        pair.key = _through(" key", pair.key)
            case nodes.Getitem(arg=nodes.Slice()):
                return _through(" slice", node)
        return node


def _count_body(node: nodes.For | nodes.Macro | nodes.CallBlock | nodes.Block) -> None:
    node.body.insert(0, nodes.ExprStmt(_turn(node), lineno=node.lineno))


def _turn(node: nodes.Node) -> nodes.Expr:
    return _through(" step", nodes.Const(True, lineno=node.lineno))


def _charge_comparison(node: nodes.Compare) -> None:
    """Comparing costs what the smaller side holds: constants are free, of two variables the right one pays."""
    left = node.expr
    for operand in node.ops:
        right = operand.expr
        looks_up = operand.op in ("in", "notin")
        if looks_up and not isinstance(right, nodes.Const):
            operand.expr = _through(" container", right)
        elif not isinstance(left, nodes.Const) and not isinstance(right, nodes.Const):
            operand.expr = _through(" charged", right)
        if looks_up and left is node.expr and not isinstance(left, nodes.Const):
            node.expr = _through(" charged", left)  # a look-up hashes it
        left = right


def _through(name: str, node: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _step(value: Any) -> Any:
    spend()
    return value


def _charged(value: Any) -> Any:
    spend_value(value)
    return value


def _container(value: Any) -> Any:
    if not isinstance(value, Mapping | range):  # these are asked once
        spend_value(value)
    return value


def _key(value: Any) -> Any:
    if isinstance(value, tuple):
        raise SecurityError("it uses a tuple as a key; keys are strings and numbers")
    return value


def _slice(value: Any) -> Any:
    if isinstance(value, str):
        spend_text(len(value))
    elif isinstance(value, list | tuple):
        spend(len(value))
    return value


def _concat(values: list[Any]) -> str:
    spend_value(values)
    return "".join(map(str, values))


COUNTERS: dict[str, Callable[[Any], Any]] = {
    " step": _step,
    " charged": _charged,
    " container": _container,
    " key": _key,
    " slice": _slice,
    " concat": _concat,
}
"""The filters that the rewritten template passes through."""
