"""Subsets of a table by an expression such as ``magnitude < 20 and not tile == "1234"``, which is parsed and never executed."""

import ast
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from gampen_ray.errors import UserError
from gampen_ray.messages import brief

__all__ = ["Where"]

# Its functions are made when it is imported, unseen by a type checker.
pc: Any = pyarrow.compute
_COMPARISONS = {
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
}
_LONGEST = 2_000
_REMEDY = "compare columns with numbers or texts, joined by and, or, not: magnitude < 20 and psf_fwhm_arcsec > 0.7"


class Where:
    """A condition on the rows of a table.

    Parameters
    ----------
    text
        Comparisons (``< <= > >= == !=``) of columns, numbers and texts, joined by ``and``, ``or``, ``not`` and parentheses.

    Raises
    ------
    UserError
        If it is anything else.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        try:
            if len(text) > _LONGEST:
                raise ValueError(f"it has {len(text):,} characters")
            self._tree = ast.parse(text.strip(), mode="eval").body
            self.names: tuple[str, ...] = tuple(dict.fromkeys(_names(self._tree)))
            if not self.names:
                raise ValueError("it names no column")
        # Deep nesting exhausts the parser in several ways.
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            fault = error.msg if isinstance(error, SyntaxError) else str(error)
            raise UserError(f"where: {brief(text)}: {fault}; {_REMEDY}") from None

    def __call__(self, columns: Mapping[str, Any] | pa.Table) -> np.ndarray:
        """Return which rows fulfil it; a comparison with a missing value is not fulfilled, and neither is its opposite.

        Raises
        ------
        UserError
            If a column cannot be compared with a value of this type.
        """
        try:
            found = _value(self._tree, columns)
            if not pa.types.is_boolean(found.type):
                raise ValueError(f"it is {found.type}, neither true nor false")
            return np.asarray(pc.fill_null(found, False))
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid, OverflowError, ValueError) as error:
            raise UserError(f"where: {brief(self._text)}: {' '.join(str(error).split())[:200]}; {_REMEDY}") from None


def _names(node: ast.expr) -> list[str]:
    """Return the columns of an expression; a ValueError if it holds more than what `_value` knows."""
    match node:
        case ast.BoolOp(values=parts) | ast.Compare(left=ast.expr(), comparators=parts):
            if isinstance(node, ast.Compare):
                if unknown := [op for op in node.ops if type(op) not in _COMPARISONS]:
                    raise ValueError(f"{type(unknown[0]).__name__} is no comparison")
                parts = [node.left, *parts]
            return [name for part in parts for name in _names(part)]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return _names(operand)
        case (
            ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float()))
            | ast.Constant(value=int() | float() | str())
        ):
            return []
        case ast.Name(id=name):
            return [name]
    raise ValueError(f"{ast.unparse(node)[:50]!r} is neither a column, a number, a text nor a comparison")


def _value(node: ast.expr, columns: Mapping[str, Any] | pa.Table) -> Any:
    match node:
        case ast.BoolOp(op=op, values=[first, *rest]):
            join, found = (pc.and_kleene if isinstance(op, ast.And) else pc.or_kleene), _value(first, columns)
            for part in rest:
                found = join(found, _value(part, columns))
            return found
        case ast.Compare(left=left, ops=ops, comparators=others):
            values = [_value(part, columns) for part in (left, *others)]
            pairs = zip(ops, values, values[1:], strict=False)
            found, *more = [getattr(pc, _COMPARISONS[type(op)])(_null(a), _null(b)) for op, a, b in pairs]
            for one in more:
                found = pc.and_kleene(found, one)
            return found
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return pc.invert(_value(operand, columns))
        case ast.UnaryOp(operand=ast.Constant(value=int() | float() as number)):
            return pa.scalar(-number)
        case ast.Constant(value=constant):
            return pa.scalar(constant)
        case ast.Name(id=name):
            return columns[name]
    raise AssertionError(node)


def _null(values: Any) -> Any:
    """Return values in which what is not a number is missing."""
    return pc.if_else(pc.is_nan(values), None, values) if pa.types.is_floating(values.type) else values
