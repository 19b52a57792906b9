"""Arithmetic over the keys of a configuration, as a sweep writes it: `256 * 3e-3 / model.hidden`."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from internevo.files.errors import UserError

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_COMPARE: dict[type, Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {"sqrt": math.sqrt, "log2": math.log2, "round": round, "int": int}


def evaluate(text: str, key: Callable[[str], Any]) -> Any:
    """The value of an expression; `key` gives that of `a.b.c`.

    Knows numbers, text, keys, + - * / // % **, comparisons, and, or, not, sqrt, log2, round and int; nothing else is
    run. Raises UserError for anything else, and for a key that `key` raises KeyError for.
    """

    def value(node: ast.AST) -> Any:
        match node:
            case ast.Expression(body=body):
                return value(body)
            case ast.Constant(value=int() | float() | str() | bool() as constant):
                return constant
            case ast.Name() | ast.Attribute():
                return key(ast.unparse(node))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return _BINARY[type(op)](value(left), value(right))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not value(operand)
            case ast.BoolOp(op=ast.And(), values=values):
                return all(value(one) for one in values)
            case ast.BoolOp(op=ast.Or(), values=values):
                return any(value(one) for one in values)
            case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARE for op in ops):
                sides = [value(one) for one in (left, *others)]
                return all(_COMPARE[type(op)](a, b) for op, a, b in zip(ops, sides, sides[1:], strict=False))
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
                return _FUNCTIONS[name](*(value(one) for one in arguments))
        raise UserError(f"{text!r}: {ast.unparse(node)!r} has no place in an expression over keys")

    try:
        return value(ast.parse(text.strip(), mode="eval"))
    except SyntaxError:
        raise UserError(f"{text!r} is not an expression over keys, such as `optimizer.lr * model.hidden < 1`") from None
    except KeyError as error:
        raise UserError(f"{text!r}: there is no key {error.args[0]}") from None
    except (ArithmeticError, TypeError, ValueError) as error:
        raise UserError(f"{text!r} cannot be computed: {error}") from None
