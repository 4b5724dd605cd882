"""Role of the data cache: a database behind Redis behind memory, and the checks for changes of other servers."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from iris_wsgi.codec.json_documents import encode_json
from iris_wsgi.codec.model_schema import Array, RowSchema, packed_values
from iris_wsgi.codec.rows import Encoder
from iris_wsgi.errors import BackendUnavailable, BadRequest, Conflict
from iris_wsgi.model.artifact import TRAINING_FILE, read_training
from iris_wsgi.model.predictor import Predict, PredictContext
from iris_wsgi.model.session import Graph
from iris_wsgi.patterns.data_cache import routes as item_routes
from iris_wsgi.patterns.data_cache.cache import ItemCache, ItemMetrics
from iris_wsgi.patterns.data_cache.read_through import CacheTimes, InvalidationStamps, ReadThrough
from iris_wsgi.patterns.data_cache.sqlite_store import open_item_store
from iris_wsgi.resilience.circuit_breaker import CircuitBreaker
from iris_wsgi.services import REQUEST_SECONDS, RoleContext
from iris_wsgi.storage.lru import LRUCache
from iris_wsgi.wsgi.application import Route

# TTL of an unknown id. A client may create the item at any moment, so the time is short.
MISSING_SECONDS = 5.0
# How long the cache keeps expired items, and serves them as stale while the database is down.
STALE_SECONDS = 3600.0
# The maximum delay until a server sees the changes of another one.
CHECK_SECONDS = 1.0


def routes(context: RoleContext) -> list[Route]:
    """Raises BadSetting, BadStore, and BackendUnavailable of an embedded database."""
    settings, log_event = context.settings, context.log.event
    metrics = ItemMetrics(context.registry)
    rows = seed_rows(context.model, Path(settings.model_dir), log_event)
    database = open_item_store(settings, rows, REQUEST_SECONDS)
    messages = "requests for items that are not in memory fail", "the database of the items works again"
    breaker = CircuitBreaker(log_event, *messages, count_failure=partial(metrics.failures.add, ("database",)))
    # Without traffic, only the checks find out that the database works again.
    context.readiness.checks.append(lambda: next(iter(breaker.remedies("changes", "identity")), None))
    context.readiness.warnings.append(breaker.remedies)
    tier = None
    if settings.cache_redis_url:
        from iris_wsgi.storage.redis_tier import TierOptions, VersionedTier

        count_failure = partial(metrics.failures.add, ("redis",))
        options = TierOptions(settings.cache_redis_url, settings.items_seconds, "data cache", log_event, count_failure)
        # 2 is the layout of the value, f4 that of the row.
        tier = VersionedTier(options, "iris:item:2f4")
    times = CacheTimes(settings.items_seconds, MISSING_SECONDS, STALE_SECONDS, CHECK_SECONDS)
    stamps = InvalidationStamps(context.registry.memory.marks)
    reader = ReadThrough(database, breaker, tier, times, stamps)
    responses = ItemResponses(context.model.schema, Encoder(context.outputs), context.predict)
    cache = ItemCache(reader, responses.item, responses.prediction, LRUCache(settings.items_bytes), times, stamps, metrics)

    def check() -> None:
        # The circuit breaker logs a database that is down.
        with suppress(BackendUnavailable):
            cache.check()

    # At half of the time that a check is valid, so that one may be late.
    context.background.repeat("check for changes of items", times.check / 2, check)
    return item_routes.routes(context.model, context.outputs, cache)


def seed_rows(model: Graph, folder: Path, log_event: Callable[[str, str], None]) -> dict[str, bytes]:
    """Returns the training rows of the model as items 0000, 0001, …, for a new database.

    Logs a warning and returns none if the file is missing or belongs to another model.
    """
    try:
        rows, _ = read_training(model.schema, folder)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        log_event("warning", f"a new database of items starts empty, because {folder / TRAINING_FILE} cannot be used: {reason}")
        return {}
    return {f"{i:04d}": model.schema.pack(rows[i : i + 1]) for i in range(len(rows))}


class ItemResponses:
    """Response bodies in JSON, for one model."""

    def __init__(self, schema: RowSchema, encoder: Encoder, predict: Predict) -> None:
        self.schema, self.encoder, self.predict = schema, encoder, predict

    def item(self, item_id: str, version: int, row: bytes) -> bytes:
        """Shows the shortest numbers that are these float32, which are those of the client unless they had too many digits."""
        return encode_json({"id": item_id, "version": version, "data": [packed_values(row)]})

    def prediction(self, item_id: str, version: int, row: bytes, deadline: float) -> bytes:
        """Raises Conflict for an item of another model, and the errors of the model."""
        try:
            fields = self.encoder.fields(self.predict(self.row(row), PredictContext(deadline)).outputs)
        except BadRequest as error:
            # The item is invalid, and not the request for its prediction.
            raise Conflict(f"{error.detail} PUT the item again.") from None
        return encode_json({"id": item_id, "version": version, **fields})

    def row(self, content: bytes) -> Array:
        """Decodes the features of an item. Raises Conflict."""
        try:
            rows = self.schema.unpack(content)
        except ValueError:
            rows = None
        if rows is None or len(rows) != 1:
            count = len(packed_values(content))
            if count != self.schema.width:
                raise Conflict(f"The item has {count} features, and the model requires {self.schema.width}; PUT the item again.")
            raise Conflict("The item has values that do not fit the features of the model; PUT the item again.")
        return rows
