# SPDX-License-Identifier: Apache-2.0
"""What a config says, worked out as far as it is plain data; anything else stays text."""

from __future__ import annotations

import ast
import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import Any

from monai.bundle import ReferenceResolver

from tools.errors import ConfigValueError
from tools.linting.configs import MergedConfig
from tools.linting.expressions import parse_expression, read_import, spell

MAX_LENGTH = 10_000  # of a list or text that an expression makes
OPERATORS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Mult: operator.mul,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "len": len,
    "list": list,
    "tuple": lambda values=(): list(values),
    "dict": dict,
    "enumerate": lambda values: [[index, value] for index, value in enumerate(values)],
    "range": lambda *ends: list(range(*ends)[:MAX_LENGTH]),
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "min": min,
    "max": max,
    "sum": sum,
    "sorted": sorted,
    "abs": abs,
    "round": round,
}


@dataclasses.dataclass(frozen=True)
class Text:
    """An expression whose value is not worked out; equal to one with the same text."""

    text: str

    def __str__(self) -> str:
        return self.text


class _UnknownError(Exception):
    """The value is not plain data."""


def is_plain(value: Any) -> bool:
    """Tell whether a value was worked out altogether."""
    if isinstance(value, dict):
        return all(map(is_plain, value.values()))
    return all(map(is_plain, value)) if isinstance(value, list) else not isinstance(value, Text)


def evaluate_literal(value: str) -> Any:
    """Return the value of a `$` expression that refers to nothing, such as what stands in JSON for infinity."""
    return _evaluate(MergedConfig("", ()), value, ())


def evaluate(config: MergedConfig, place: str) -> Any:
    """Return the value of an id: plain data, components as mappings, `Text` for what is not plain, None if missing."""
    return _evaluate(config, config.get(place), ())


def _evaluate(config: MergedConfig, value: Any, above: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: _evaluate(config, item, above) for key, item in value.items()}
    if isinstance(value, list):
        return [_evaluate(config, item, above) for item in value]
    if not isinstance(value, str):
        return value
    if value.startswith("$"):
        try:
            expression = parse_expression(value)
            if read_import(expression) is not None:
                raise _UnknownError
            return _compute(expression.tree, config, expression.references, above)  # type: ignore[arg-type]
        except SyntaxError:
            return Text(value)
        except (_UnknownError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError):
            return Text(spell(expression))
    place = ReferenceResolver.normalize_id(value)
    if ReferenceResolver.id_matcher.fullmatch(place):
        try:
            return _refer(place[1:], config, above)
        except _UnknownError:
            return Text(value)
    return value


def _refer(place: str, config: MergedConfig, above: tuple[str, ...]) -> Any:
    if place in above or place not in config:
        raise _UnknownError
    return _evaluate(config, config.get(place), (*above, place))


def _compute(node: ast.expr, config: MergedConfig, references: Mapping[str, str], above: tuple[str, ...]) -> Any:
    def compute(inner: ast.expr) -> Any:
        return _compute(inner, config, references, above)

    result: Any
    match node:
        case ast.Constant():
            return node.value
        case ast.Name() if node.id in references:
            result = _refer(references[node.id], config, above)
        case ast.List() | ast.Tuple():
            return [compute(element) for element in node.elts]
        case ast.Dict() if all(key is not None for key in node.keys):
            return {compute(k): compute(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
        case ast.UnaryOp(op=ast.USub()):
            result = -compute(node.operand)
        case ast.UnaryOp(op=ast.Not()):
            return not compute(node.operand)
        case ast.BoolOp():
            for value in node.values:
                result = compute(value)
                if bool(result) is isinstance(node.op, ast.Or):
                    break
            return result
        case ast.IfExp():
            return compute(node.body) if compute(node.test) else compute(node.orelse)
        case ast.Compare(ops=[kind]) if type(kind) in OPERATORS:
            return OPERATORS[type(kind)](compute(node.left), compute(node.comparators[0]))
        case ast.BinOp() if type(node.op) in OPERATORS:
            result = _combine(node.op, compute(node.left), compute(node.right))
        case ast.Subscript(slice=ast.Slice() as part):
            ends = [None if end is None else compute(end) for end in (part.lower, part.upper, part.step)]
            result = compute(node.value)[slice(*ends)]
        case ast.Subscript():
            result = compute(node.value)[compute(node.slice)]
        case ast.Call(func=ast.Name(id=name)) if name in FUNCTIONS and not node.keywords:
            result = FUNCTIONS[name](*[compute(argument) for argument in node.args])
        case ast.Call(func=ast.Attribute(value=ast.Name(id="transforms"), attr="keep_image"), args=[steps]):
            result = [{**step, "keys": "image"} for step in compute(steps)]  # as our function does to instances
        case ast.Call(func=ast.Attribute(value=ast.Name(id="networks"), attr="fit_roi_size"), args=[size]):
            result = _fit_roi_size(compute(size))
        case ast.Call(func=ast.Attribute(attr="values" | "keys" | "items" as name) as method, args=[], keywords=[]):
            mapping = compute(method.value)
            if not isinstance(mapping, dict):
                raise _UnknownError
            result = [list(row) if name == "items" else row for row in getattr(mapping, name)()]
        case _:
            raise _UnknownError
    if isinstance(result, Text):
        raise _UnknownError
    return result


def _fit_roi_size(size: Any) -> list[int]:
    """Return what our function does, which imports the networks."""
    from tools.networks import fit_roi_size

    try:
        return fit_roi_size(size)
    except ConfigValueError as error:
        raise _UnknownError from error


def _combine(kind: ast.operator, left: Any, right: Any) -> Any:
    """Apply an operator, with lists and texts kept to a length that no config needs to exceed."""
    if isinstance(kind, ast.Mult):
        for many, count in ((left, right), (right, left)):
            if isinstance(many, (list, str)) and len(many) * count > MAX_LENGTH:
                raise _UnknownError
    if isinstance(kind, ast.Mod) and isinstance(left, str):
        raise _UnknownError  # a format can ask for any width
    if any(isinstance(value, int) and abs(value) > 10**30 for value in (left, right)):
        raise _UnknownError
    return OPERATORS[type(kind)](left, right)
