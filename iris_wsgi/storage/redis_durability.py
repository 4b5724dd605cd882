"""What a Redis may lose of jobs that were acknowledged, by its own settings."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iris_wsgi.storage.redis import RedisClient

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


def concerns(link: "RedisClient") -> list[str]:
    """By CONFIG GET, or where that is not allowed by what INFO tells of it. Raises BackendUnavailable."""
    told = link.config(NAMES)
    unknown = [name for name in NAMES if name not in told]
    if unknown:
        told |= by_info(link)
    found = judged(told)
    # What is known to lose jobs says more.
    return found or ([UNKNOWN] if unknown else [])


def by_info(link: "RedisClient") -> dict[str, str]:
    persistence, memory = link.info("persistence"), link.info("memory")
    told = {"0": {"appendonly": "no"}, "1": {"appendonly": "yes"}}.get(persistence.get("aof_enabled", ""), {})
    return told | {name.replace("_", "-"): memory[name] for name in ("maxmemory", "maxmemory_policy") if name in memory}


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
