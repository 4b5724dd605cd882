"""What a Redis may lose of jobs that were acknowledged, by its own settings."""

from typing import Any

import redis

NAMES = ("appendonly", "appendfsync", "no-appendfsync-on-rewrite", "maxmemory", "maxmemory-policy")
LOSES = "The Redis of the jobs may lose jobs that were acknowledged: "
NO_LOG = LOSES + "it has no append-only file; set appendonly yes and appendfsync always."
LATE = LOSES + "it does not write each change to its disk before it answers; set appendfsync always."
PAUSES = LOSES + "it writes nothing to its disk while it rewrites a file; set no-appendfsync-on-rewrite no."
EVICTS = LOSES + "it evicts keys when its memory is full; set maxmemory-policy noeviction."
UNKNOWN = (
    "Whether the Redis of the jobs keeps all that was acknowledged is unknown, as it does not tell this user its settings;"
    " it must have appendonly yes, appendfsync always, and maxmemory-policy noeviction."
)


def concerns(client: "redis.Redis") -> list[str]:
    """By CONFIG GET, or where that is not allowed by what INFO tells of it. Raises redis.RedisError."""
    with client.pipeline(transaction=False) as steps:
        for name in NAMES:
            steps.config_get(name)
        answers = steps.execute(raise_on_error=False)
    if any(isinstance(one, redis.ConnectionError | redis.TimeoutError) for one in answers):
        raise redis.ConnectionError("no answer about its settings")
    told = {text(name): text(value) for one in answers if isinstance(one, dict) for name, value in one.items()}
    unknown = [name for name in NAMES if name not in told]
    if unknown:
        told |= by_info(client)
    found = judged(told)
    # What is known to lose jobs says more.
    return found or ([UNKNOWN] if unknown else [])


def by_info(client: "redis.Redis") -> dict[str, str]:
    told: dict[str, str] = {}
    for section, field, name in (
        ("persistence", "aof_enabled", "appendonly"),
        ("memory", "maxmemory", "maxmemory"),
        ("memory", "maxmemory_policy", "maxmemory-policy"),
    ):
        try:
            value = client.info(section).get(field)
        except redis.ResponseError:
            continue
        if value is not None:
            told[name] = {"0": "no", "1": "yes"}.get(text(value), text(value)) if name == "appendonly" else text(value)
    return told


def judged(told: dict[str, str]) -> list[str]:
    found = []
    if told.get("appendonly") == "no":
        found.append(NO_LOG)
    elif told.get("appendfsync", "always") != "always":
        found.append(LATE)
    elif told.get("no-appendfsync-on-rewrite") == "yes":
        found.append(PAUSES)
    # No key of a job has a time to live, so policies of volatile keys take none.
    if told.get("maxmemory", "0") != "0" and told.get("maxmemory-policy", "").startswith("allkeys"):
        found.append(EVICTS)
    return found


def text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
