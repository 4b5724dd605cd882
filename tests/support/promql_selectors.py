"""Selectors of PromQL expressions: the series, their label matchers, and the functions around them."""

from collections.abc import Iterator
from typing import NamedTuple

import promql_parser
from promql_parser import AggregateExpr, BinaryExpr, Call, Expr, MatrixSelector, VectorSelector


class Matcher(NamedTuple):
    """Label matcher. `op` is Equal, NotEqual, Re, or NotRe."""

    label: str
    op: str
    value: str


class Selector(NamedTuple):
    """Series name with its matchers. `within` lists the enclosing functions, the innermost first."""

    name: str
    matchers: list[Matcher]
    within: tuple[str, ...]


def parse_promql(expression: str) -> Expr:
    """Parses an expression. Raises ValueError if it is not valid PromQL."""
    return promql_parser.parse(expression)


def sub_expressions(expr: Expr) -> list[Expr]:
    operands = [getattr(expr, name, None) for name in ("lhs", "rhs", "expr", "param", "vector_selector")]
    arguments = expr.args if isinstance(expr, Call) else ()
    return [*(part for part in operands if isinstance(part, Expr | VectorSelector)), *arguments]


def selectors(expr: Expr, within: tuple[str, ...] = ()) -> Iterator[Selector]:
    if isinstance(expr, VectorSelector):
        yield Selector(
            expr.name, [Matcher(m.name, str(m.op).rpartition(".")[2], m.value) for m in expr.matchers.matchers], within
        )
    if isinstance(expr, Call):
        within = (expr.func.name, *within)
    elif isinstance(expr, MatrixSelector):
        within = ("[]", *within)
    for part in sub_expressions(expr):
        yield from selectors(part, within)


def grouping_labels(expr: Expr) -> Iterator[str]:
    """Yields the labels of aggregations and of vector matching."""
    modifier = getattr(expr, "modifier", None)
    if modifier is not None and isinstance(expr, AggregateExpr):
        yield from modifier.labels
    if modifier is not None and isinstance(expr, BinaryExpr):
        yield from modifier.matching.labels if modifier.matching else ()
        yield from modifier.group_labels or ()
    for part in sub_expressions(expr):
        yield from grouping_labels(part)
