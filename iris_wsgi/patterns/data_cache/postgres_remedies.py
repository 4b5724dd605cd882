"""Permanent refusals of PostgreSQL, in words for clients: no name, address, or message of a server is in them."""

from iris_wsgi.errors import Denied, StoreDown

GRANT = (
    "The role of IRIS_DATABASE_URL lacks a privilege: grant it SELECT, INSERT and UPDATE on iris_items"
    " and SELECT on iris_items_store, or, where these tables are not there yet, USAGE and CREATE on their schema."
)
SIGN_IN = "The database refuses the role or the password of IRIS_DATABASE_URL: correct them, or let the role sign in."
CREATE = "There is no database of the name in IRIS_DATABASE_URL: create it, or correct the name."
RESTART = "The tables iris_items and iris_items_store are missing or have another form: restore them, or restart the server."
PRIMARY = "The database takes no writes: IRIS_DATABASE_URL must lead to the primary, and its role must not be read-only."
# By the SQLSTATE or its class.
OF_ALL = {"28": SIGN_IN, "3D": CREATE}
OF_ONE = {"42501": GRANT, "42P01": RESTART, "42703": RESTART, "3F": GRANT, "25006": PRIMARY}
# libpq gives no SQLSTATE for a connection that was refused; PgBouncer has words of its own.
WORDS = {
    "authentication failed": SIGN_IN,
    "pg_hba.conf": SIGN_IN,
    "not permitted to log in": SIGN_IN,
    "no such user": SIGN_IN,
    "no such database": CREATE,
    "permission denied for database": SIGN_IN,
}


def refusal(error: Exception, why: str) -> StoreDown:
    """Denied for one operation, StoreDown for all; without a remedy where a retry may help."""
    state = getattr(error, "sqlstate", None) or ""
    if remedy := OF_ONE.get(state) or OF_ONE.get(state[:2]):
        return Denied(why, remedy)
    return StoreDown(why, OF_ALL.get(state[:2]) or spoken(str(error)))


def spoken(text: str) -> str:
    if "role " in text and "does not exist" in text:
        return SIGN_IN
    if "database " in text and "does not exist" in text:
        return CREATE
    return next((remedy for words, remedy in WORDS.items() if words in text), "")
