"""PromQL taken apart: which series an expression names, by which labels, and what it does with them."""

from collections.abc import Iterator
from typing import NamedTuple

import promql_parser
from promql_parser import AggregateExpr, BinaryExpr, Call, Expr, MatrixSelector, VectorSelector


class Matcher(NamedTuple):
    """`op` is Equal, NotEqual, Re or NotRe."""

    label: str
    op: str
    value: str


class Selector(NamedTuple):
    """A series by its name, and `within` which functions it stands, the innermost first."""

    name: str
    matchers: list[Matcher]
    within: tuple[str, ...]


def parse_promql(expression: str) -> Expr:
    """Raises ValueError for what is no PromQL."""
    return promql_parser.parse(expression)


def sub_expressions(one: Expr) -> list[Expr]:
    found = [getattr(one, name, None) for name in ("lhs", "rhs", "expr", "param", "vector_selector")]
    return [*(part for part in found if isinstance(part, Expr | VectorSelector)), *(one.args if isinstance(one, Call) else ())]


def selectors(one: Expr, within: tuple[str, ...] = ()) -> Iterator[Selector]:
    if isinstance(one, VectorSelector):
        yield Selector(one.name, [Matcher(m.name, str(m.op).rpartition(".")[2], m.value) for m in one.matchers.matchers], within)
    here = (one.func.name, *within) if isinstance(one, Call) else ("[]", *within) if isinstance(one, MatrixSelector) else within
    for part in sub_expressions(one):
        yield from selectors(part, here)


def grouping_labels(one: Expr) -> Iterator[str]:
    """The labels by which something is aggregated or matched."""
    modifier = getattr(one, "modifier", None)
    if modifier is not None and isinstance(one, AggregateExpr):
        yield from modifier.labels
    if modifier is not None and isinstance(one, BinaryExpr):
        yield from modifier.matching.labels if modifier.matching else ()
        yield from modifier.group_labels or ()
    for part in sub_expressions(one):
        yield from grouping_labels(part)
