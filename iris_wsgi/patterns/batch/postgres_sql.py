"""The SQL that only PostgreSQL has."""

from collections.abc import Sequence

from iris_wsgi.patterns.batch.database import Column, Dialect, Name, quoted
from iris_wsgi.patterns.batch.sql import DIGEST, ERROR, PREDICTION, RUN_ID, TIME, answer_columns
from iris_wsgi.tabular.writers import LABEL

# Types whose values are doubles without a doubt; all others are read as text, in which nothing can be out of range.
DOUBLES = {"double precision", "real", "integer", "smallint", "bigint"}
TYPES = {LABEL: "text", DIGEST: "text NOT NULL", RUN_ID: "text NOT NULL", TIME: "timestamptz NOT NULL", ERROR: "text"}
FIND = """
SELECT n.nspname, c.oid, c.relkind = 'r' AND c.relhassubclass
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = to_regclass(%s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""
COLUMNS = """
SELECT attname, format_type(atttypid, atttypmod), NOT attnotnull FROM pg_attribute
WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
# Unique indexes that compare as the columns do.
KEYS = """
SELECT i.indisprimary, array_agg(a.attname::text ORDER BY k.place)
FROM pg_index i, unnest(i.indkey, i.indcollation) WITH ORDINALITY AS k (attnum, coll, place)
LEFT JOIN pg_attribute a ON a.attrelid = %s AND a.attnum = k.attnum AND k.coll IN (0, a.attcollation)
WHERE i.indrelid = %s AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND k.place <= i.indnkeyatts
GROUP BY i.indexrelid, i.indisprimary ORDER BY i.indexrelid
"""
# For this transaction alone: a pool in transaction mode lends the connection to another application afterwards.
SET = """
SELECT set_config(name, setting, true) FROM unnest(%s::text[], %s::text[]) AS s (name, setting)
"""


def feature(name: str, kind: str) -> str:
    return f"{name}::float8" if kind in DOUBLES else f"{name}::text"


DIALECT = Dialect(
    "%s",
    "clock_timestamp()",
    # Any type has a text and comes from it again; Python has no word for some of their values, such as a date of infinity.
    "{}::text",
    feature,
    # psycopg takes a lone % for a mark.
    lambda name: quoted(name).replace("%", "%%"),
    # Others may still refer to the rows meanwhile, as foreign keys do.
    " FOR NO KEY UPDATE OF s",
    " SKIP LOCKED",
)


def makers(source: Name, key: Sequence[Column], labels: Sequence[str]) -> list[str]:
    """Statements that make the table for predictions; types and collations of the key are those of the source."""
    names = ", ".join(DIALECT.quoted(one.name) for one in key)
    columns = [f"ADD COLUMN {DIALECT.quoted(one)} {TYPES.get(one, 'double precision')}" for one in answer_columns(labels)]
    target = source.beside(PREDICTION).written(DIALECT.quoted)
    return [
        f"CREATE TABLE {target} AS SELECT {names} FROM {source.written(DIALECT.quoted)} WITH NO DATA",
        f"ALTER TABLE {target} {', '.join(columns)}, ADD PRIMARY KEY ({names})",
    ]


def written(target: str, key: Sequence[Column], labels: Sequence[str], redo: bool) -> str:
    """Writes rows and counts them by label. Values: digest, run, and arrays: keys, labels, probabilities, errors."""
    columns = [DIALECT.quoted(one) for one in (*(one.name for one in key), *answer_columns(labels))]
    names, digest = ", ".join(columns[: len(key)]), DIALECT.quoted(DIGEST)
    changed = ", ".join(f"{one} = excluded.{one}" for one in columns[len(key) :])
    done = f"UPDATE SET {changed} WHERE p.{digest} <> excluded.{digest}" if redo else "NOTHING"
    # The columns u.c0, u.c1, … of the rows.
    kinds = ["text"] * (len(key) + 1) + ["float8"] * len(labels) + ["text"]
    read = [f"u.c{i}::{one.type.replace('%', '%%')}" for i, one in enumerate(key)]
    read += [f"u.c{i}" for i in range(len(key), len(kinds) - 1)] + ["%s", "%s", DIALECT.now, f"u.c{len(kinds) - 1}"]
    return (
        f"WITH written AS (INSERT INTO {target} AS p ({', '.join(columns)}) SELECT {', '.join(read)} "
        f"FROM unnest({', '.join(f'%s::{kind}[]' for kind in kinds)}) AS u ({', '.join(f'c{i}' for i in range(len(kinds)))}) "
        f"ON CONFLICT ({names}) DO {done} RETURNING label) SELECT label, count(*) FROM written GROUP BY label"
    )
