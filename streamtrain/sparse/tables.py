"""Settings of the kinds of embedding tables, and what the hashed ones come down to."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from streamtrain.settings import Settings, kind_or
from streamtrain.sparse.settings import RowSettings, TableSettings

__all__ = [
    "PARTS_MAX",
    "PART_BITS",
    "ROWS_LIMIT",
    "AnyTable",
    "Combine",
    "HashTable",
    "Hashing",
    "MultiHashTable",
]

PARTS_MAX = 8
PART_BITS = 32
"""A row id is the part's number above these bits, and the bucket below."""
ROWS_LIMIT = 2_000_000_000

Combine = Literal["add", "concat", "multiply"]
Size = Annotated[int, Field(ge=1, le=ROWS_LIMIT)]


class Hashing(Settings):
    """How ids become rows in a table of fixed size: `docs/row-ids.md` is the law.

    The same for every kind of hashed table, and what a follower must know of one.
    """

    scheme: Literal["independent", "quotient_remainder"]
    """A hash for each part, or the quotient and the remainder of one hash."""
    sizes: list[Size] = Field(min_length=1, max_length=PARTS_MAX)
    """Rows of each part."""
    combine: Combine
    """How an id's vector comes from its rows, one of each part."""

    @property
    def parts(self) -> int:
        """Rows that make one vector."""
        return len(self.sizes)

    @property
    def rows(self) -> int:
        """Rows in all."""
        return sum(self.sizes)

    def row_dim(self, dim: int) -> int:
        """Floats a row where vectors have `dim`."""
        return dim // self.parts if self.combine == "concat" else dim


class _FixedTable(RowSettings):
    """What tables of fixed size share: no row comes or goes, so nothing decides about that."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_rows_of_their_own_need(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in TableSettings.model_fields:
                if key in data and key not in cls.model_fields:
                    raise ValueError(
                        f"`{key}` is for tables in which each id has a row of its own; this table's rows are fixed by "
                        '`rows` and shared by ids: leave it out, or use kind = "dynamic"'
                    )
        return data


class HashTable(_FixedTable):
    """Feature hashing: a fixed number of rows, and an id's row is its hash. Ids that collide share a row."""

    kind: Literal["hash"]
    """An id's row is its hash."""
    rows: Size
    """Rows. With n distinct ids an id shares its row with a chance of 1 - exp(-n / rows)."""

    @property
    def hashing(self) -> Hashing:
        """What it comes down to: one part, whose row is the vector."""
        return Hashing(scheme="independent", sizes=[self.rows], combine="add")

    @property
    def row_dim(self) -> int:
        """Floats a row."""
        return self.dim


class MultiHashTable(_FixedTable):
    """Compositional embeddings: an id's vector is made of one row of each part, so that few ids share all of theirs."""

    kind: Literal["multi_hash"]
    """An id's vector is made of one row of each part."""
    rows: Size | list[Size]
    """Rows of each part: one number for all, or a list with one a part."""
    hashes: Literal["quotient_remainder"] | Annotated[int, Field(ge=2, le=PARTS_MAX)] = "quotient_remainder"
    """`quotient_remainder` (two parts from one hash), or how many hashes: one a part."""
    combine: Combine = "add"
    """`add` and `multiply` element by element; `concat` sets rows of dim / parts floats side by side."""

    @model_validator(mode="after")
    def _parts_fit_together(self) -> MultiHashTable:
        parts = self._parts
        if isinstance(self.rows, list) and len(self.rows) != parts:
            raise ValueError(
                f"rows lists {len(self.rows)} sizes and hashes = {self.hashes!r} makes {parts} parts: one each"
            )
        if self.hashing.rows > ROWS_LIMIT:
            raise ValueError(f"rows are {self.hashing.rows} in all; a table holds at most {ROWS_LIMIT}")
        if self.combine == "concat" and self.dim % parts:
            raise ValueError(
                f'dim = {self.dim} does not divide by {parts} parts, which combine = "concat" sets side by side'
            )
        return self

    @property
    def _parts(self) -> int:
        return 2 if self.hashes == "quotient_remainder" else self.hashes

    @property
    def hashing(self) -> Hashing:
        """What it comes down to."""
        sizes = self.rows if isinstance(self.rows, list) else [self.rows] * self._parts
        scheme: Any = "quotient_remainder" if self.hashes == "quotient_remainder" else "independent"
        return Hashing(scheme=scheme, sizes=sizes, combine=self.combine)

    @property
    def row_dim(self) -> int:
        """Floats a row."""
        return self.hashing.row_dim(self.dim)


AnyTable = Annotated[
    Annotated[TableSettings, Tag("dynamic")]
    | Annotated[HashTable, Tag("hash")]
    | Annotated[MultiHashTable, Tag("multi_hash")],
    kind_or("dynamic"),
]
