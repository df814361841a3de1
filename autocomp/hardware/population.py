"""Sums of table entries for a population at once: costs as terms over columns, merged into few tables of rows.

A term says what one part of a network adds to the costs, for all values of the columns that it depends on. Terms over
the same or few other columns are merged into one table, so that a candidate costs a handful of lookups a layer:
one index into the table and one gather of a row that holds all figures side by side, accumulated row by row. Latency
tables of any size end up in tables of this one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocomp.hardware.choices import Columns, Dimension

Figures = NDArray[Any]

#: Candidates scored at once: so many that calls of numpy cost little, so few that their sums stay in the cache.
CHUNK = 8192
#: Rows up to which terms are merged into one table: with four figures a row it stays in the second-level cache.
MOST_ROWS = 4096


@dataclass(frozen=True)
class Term:
    """Figures over the columns that they depend on. values: (*sizes of dimensions, figures)."""

    dimensions: tuple[Dimension, ...]
    values: Figures

    @classmethod
    def of(cls, values: Figures, *dimensions: Dimension) -> "Term":
        """values: (…, figures), rows in the order of the dimensions, the last one fastest."""
        return cls(dimensions, values.reshape(*(dimension.size for dimension in dimensions), values.shape[-1]))

    @property
    def rows(self) -> int:
        return prod(dimension.size for dimension in self.dimensions)

    def over(self, dimensions: Sequence[Dimension]) -> Figures:
        """The values with one axis a dimension, 1 wide where the term does not depend on it."""
        order = sorted(range(len(self.dimensions)), key=lambda i: dimensions.index(self.dimensions[i]))
        moved = self.values.transpose(*order, -1)
        sizes = [d.size if d in self.dimensions else 1 for d in dimensions]
        return moved.reshape(*sizes, self.values.shape[-1])


def merged(
    terms: Sequence[Term], join: Callable[[Figures, Figures], Figures], most_rows: int = MOST_ROWS
) -> list[Term]:
    """The same figures in fewer terms: each joins the one that grows least by it, within `most_rows`."""
    groups: list[Term] = []
    for term in sorted(terms, key=lambda term: -term.rows):  # the small ones find their columns in the large ones
        sizes = [_union_rows(group, term) for group in groups]
        best = min(range(len(groups)), key=lambda i: sizes[i] - groups[i].rows, default=None)
        if best is not None and sizes[best] <= max(most_rows, groups[best].rows, term.rows):
            groups[best] = _joined(groups[best], term, join)
        else:
            groups.append(term)
    return groups


def _union(a: Term, b: Term) -> tuple[Dimension, ...]:
    return tuple(dict.fromkeys((*a.dimensions, *b.dimensions)))


def _union_rows(a: Term, b: Term) -> int:
    return prod(dimension.size for dimension in _union(a, b))


def _joined(a: Term, b: Term, join: Callable[[Figures, Figures], Figures]) -> Term:
    dimensions = _union(a, b)
    return Term(dimensions, join(a.over(dimensions), b.over(dimensions)))


@dataclass(frozen=True)
class Table:
    """A term laid out for lookups. rows: (product of the dimensions' sizes, figures)."""

    dimensions: tuple[Dimension, ...]
    rows: Figures

    @classmethod
    def of(cls, term: Term) -> "Table":
        return cls(term.dimensions, np.ascontiguousarray(term.values).reshape(term.rows, -1))

    def look_up(self, columns: Columns, out: Figures) -> Figures:
        """columns: (width, n). The rows of the n candidates, written to `out`: (n, figures)."""
        if not self.dimensions:
            out[:] = self.rows[0]
            return out
        (first, _), *others = self.dimensions
        # Where the table is small enough for it, the index is worked out in the columns' own 16 bits.
        index = columns[first].astype(columns.dtype if len(self.rows) <= np.iinfo(columns.dtype).max else np.int64)
        for column, size in others:
            index *= size
            index += columns[column]
        return self.rows.take(index, axis=0, out=out, mode="clip")


@dataclass(frozen=True)
class Accumulated:
    """Tables whose rows are joined, by a sum unless said otherwise, into the figures of a candidate."""

    tables: tuple[Table, ...]
    join: np.ufunc = np.add

    @classmethod
    def of(cls, terms: Sequence[Term], join: np.ufunc = np.add, most_rows: int = MOST_ROWS) -> "Accumulated":
        return cls(tuple(Table.of(term) for term in merged(terms, join, most_rows)), join)

    def __call__(self, columns: Columns, out: Figures) -> Figures:
        """columns: (width, n). The figures of the n candidates, written to `out`: (n, figures)."""
        first, *others = self.tables
        first.look_up(columns, out)
        row = np.empty_like(out)
        for table in others:
            self.join(out, table.look_up(columns, row), out=out)
        return out
