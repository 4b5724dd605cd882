"""The one table of settings, and the only reader of the environment."""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

from iris_wsgi.roles import ROLES
from iris_wsgi.setting_types import (
    database_address,
    folder,
    has_password,
    host_names,
    one_of,
    redis_address,
    registry,
    seal_text,
    seconds,
    server_address,
    share,
    species,
    text,
    url_prefix,
    whole,
)

PREFIX = "IRIS_"
MOST_BYTES = 1_099_511_627_776


class BadSetting(Exception):
    """A setting that is unknown, has a wrong value or contradicts another; the message is one line that names it."""


def setting(default: Any, cast: Callable[[str], Any], help_text: str, secret: bool = False) -> Any:
    """A field with its default; the value of a `secret` one is never shown."""
    return field(default=default, repr=not secret, metadata={"help": help_text, "check": {"cast": cast, "secret": secret}})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting: its field is its name, in the environment as IRIS_NAME and on the command line as --name."""

    host: str = setting("127.0.0.1", text, "address to listen on; 0.0.0.0 is every IPv4 address of the machine")
    port: int = setting(8000, whole(0, 65535), "TCP port to listen on; 0 takes a free one")
    allowed_hosts: str = setting(
        "",
        host_names,
        "host names that a request may have, with commas between them: .example.com also allows names below it, * any name; "
        "empty: on a loopback address loopback names, elsewhere any",
    )
    role: str = setting("all", one_of(*ROLES), f"which pattern to serve: {', '.join(ROLES)}")
    threads: int = setting(0, whole(0, 1000), "threads that answer requests; 0 chooses by CPUs and role")
    workers: int = setting(0, whole(0, 64), "processes that serve; 0 chooses by the limits of CPU and memory")
    model_dir: str = setting("model", text, "folder with golden.json, label.json and the ONNX model")
    model_seal: str = setting(
        "", seal_text, "SHA-256 that golden.json must have, which holds those of the other files; empty: any"
    )
    max_body_bytes: int = setting(1_048_576, whole(64, 1_073_741_824), "most bytes a request's body may have")
    max_rows: int = setting(10_000, whole(1, 10_000_000), "most rows a request may have")
    deadline_ms: int = setting(10_000, whole(0, 3_600_000), "milliseconds from a request to its answer; then 504; 0: any")
    batch_rows: int = setting(0, whole(0, 1000), "most requests of one row that become one run of the model; 0: none do")
    batch_delay_ms: int = setting(0, whole(0, 10_000), "milliseconds that the first of them waits for others")
    state_dir: str = setting("state", text, "folder of the embedded stores, made when it is needed")
    redis_url: str = setting(
        "", redis_address, "Redis that keeps the jobs, for several machines; empty: SQLite in the folder above", True
    )
    database_url: str = setting(
        "",
        database_address,
        "database of the items, and of the command batch: sqlite:///file, sqlite:////file from the root, or postgresql://…; "
        "empty: SQLite in the folder above for the items",
        True,
    )
    items_bytes: int = setting(16_777_216, whole(4096, MOST_BYTES), "most bytes of items and answers kept by a process")
    items_seconds: float = setting(60.0, seconds(0.1, 86400), "seconds that an item is kept at most until it is read again")
    items_missing_seconds: float = setting(5.0, seconds(0.1, 86400), "the same for an id that there is not")
    items_check_seconds: float = setting(
        1.0, seconds(0.1, 3600), "seconds after which another server's change is seen at the latest, unless marked stale"
    )
    items_stale_seconds: float = setting(
        3600.0, seconds(0, 999999), "seconds that an item is kept beyond its time, for when the database is down"
    )
    items_redis_url: str = setting("", redis_address, "Redis between memory and the database of the items; empty: none", True)
    jobs_queued: int = setting(10_000, whole(1, 10_000_000), "most jobs that may wait; more get 503")
    jobs_attempts: int = setting(5, whole(1, 1000), "how often a job is tried before it is a dead letter")
    jobs_claimed: int = setting(64, whole(1, 10_000), "most jobs that a worker takes at once, to run the model on them together")
    job_seconds: float = setting(
        300.0, seconds(0.1, 86400), "seconds that a run of the model on jobs may take; then it is tried again"
    )
    lease_seconds: float = setting(
        10.0, seconds(0.1, 3600), "seconds after which the jobs of a worker that is gone go to another"
    )
    retry_seconds: float = setting(
        1.0, seconds(0.001, 3600), "first pause, about, before a job is tried again; it doubles, up to 60"
    )
    keep_seconds: float = setting(3600.0, seconds(0.1, 999999), "seconds that a job is kept once it is done; then 410")
    keep_failed_seconds: float = setting(604800.0, seconds(0.1, 999999), "the same for dead letters")
    wait_seconds: float = setting(30.0, seconds(0, 3600), "most seconds that Prefer: wait=N may hold back the answer about a job")
    waiters: int = setting(64, whole(1, 10_000), "most requests of a process that are held back so at once; more get 503")
    fast_model_dir: str = setting("", folder, "folder of the fast model of sync-async; empty: `fast` in the model's own")
    escalate_below: float = setting(
        1.0, share, "probability of the fast answer below which the full model is asked too; 1: always"
    )
    cache: str = setting("auto", one_of("auto", "on", "off"), "the prediction cache; auto: in the roles prediction_cache and all")
    cache_bytes: int = setting(8_388_608, whole(1024, MOST_BYTES), "most bytes of memory that it may take in each process")
    cache_seconds: float = setting(3600.0, seconds(0.01, 999999), "seconds that an answer counts in it")
    cache_redis_url: str = setting(
        "", redis_address, "Redis as its second level, for several machines and heavy models; empty: none", True
    )
    pred_url: str = setting("", server_address, "server of role pred, which has the other half of what role prep has")
    member: str = setting("", species, "which species' model role member serves")
    members: str = setting(
        "", registry, "servers of role member that role gateway asks: setosa=http://…,versicolor=…; empty in role all: here"
    )
    quorum: int = setting(0, whole(0, 1000), "members that must answer, or there is a 503; 0: more than half")
    abstain_below: float = setting(
        0.0, share, "probability of the most probable species below which an answer names none; 0: it names one"
    )
    ensemble_ms: int = setting(1000, whole(1, 3_600_000), "milliseconds that a gateway waits for its members")
    hedge_percentile: int = setting(
        0, whole(0, 99), "a call slower than so many of 100 before it is made a second time, a tenth of them at most; 0: none is"
    )
    calls: int = setting(16, whole(1, 1000), "most requests of a process that ask other servers at once; others wait for them")
    edge_dir: str = setting("", folder, "folder of the edge bundle (bin/edge build) that is served at /edge/; empty: none is")
    edge_required: str = setting(
        "yes",
        one_of("yes", "no"),
        "whether a bundle that is damaged or of another model stops the start; no: it is left out with a warning",
    )
    url_prefix: str = setting(
        "",
        url_prefix,
        "path of this server at a proxy that strips it, such as /iris; forwarded: as X-Forwarded-Prefix says, behind a proxy that"
        " always sets it; empty: none",
    )
    token_file: str = setting(
        "", folder, "file of tokens, one a line; all but health and metrics then wants one, as a bearer token; empty: none"
    )
    connections: int = setting(4096, whole(1, 1_000_000), "most connections of a process at once; more get 503")
    queue: int = setting(64, whole(1, 100_000), "most requests that wait for a thread; more get 503")
    pending_bytes: int = setting(
        16_777_216,
        whole(64, MOST_BYTES),
        "most bytes of requests that are not answered yet (more get 503), and of answers that are not taken yet (the oldest go)",
    )
    header_seconds: float = setting(10.0, seconds(0.1, 3600), "seconds for a request's line and fields; then 408")
    request_seconds: float = setting(30.0, seconds(0.1, 3600), "seconds for a whole request; then 408")
    idle_seconds: float = setting(60.0, seconds(0.1, 86400), "seconds that a connection may wait for its next request")
    send_seconds: float = setting(30.0, seconds(0.1, 3600), "seconds in which a client must take an answer, or 16 KiB more of it")
    grace_seconds: float = setting(
        0.0, seconds(0, 3600), "seconds to go on serving after SIGTERM, not ready, so that traffic turns away"
    )
    drain_seconds: float = setting(10.0, seconds(0, 3600), "most seconds after the grace for requests under way")

    def __post_init__(self) -> None:
        for one in fields(self):
            checked(name_of(one.name), str(getattr(self, one.name)), **one.metadata["check"])
        if self.header_seconds > self.request_seconds:
            raise BadSetting(
                f"IRIS_HEADER_SECONDS={self.header_seconds:g} is over IRIS_REQUEST_SECONDS={self.request_seconds:g}, "
                "which counts from the same first byte"
            )
        if self.batch_delay_ms and not self.batch_rows:
            raise BadSetting(f"IRIS_BATCH_DELAY_MS={self.batch_delay_ms} has nothing to wait for without IRIS_BATCH_ROWS")
        if self.role == "prediction_cache" and self.cache == "off":
            raise BadSetting("IRIS_CACHE=off leaves nothing of IRIS_ROLE=prediction_cache; web_single has the same routes")
        if self.cache_redis_url and not self.has_cache:
            raise BadSetting("IRIS_CACHE_REDIS_URL is the second level of a cache that is off; IRIS_CACHE=on turns it on")
        needed = ROLES[self.role].needs
        if needed and not getattr(self, needed):
            raise BadSetting(f"IRIS_ROLE={self.role} needs {name_of(needed)}, and it is empty")
        if self.quorum > len(self.members.split(",")) and self.members:
            raise BadSetting(
                f"IRIS_QUORUM={self.quorum} can never be reached by the {len(self.members.split(','))} of IRIS_MEMBERS"
            )
        if self.pending_bytes < self.max_body_bytes:
            raise BadSetting(
                f"IRIS_PENDING_BYTES={self.pending_bytes} has no room for one body of IRIS_MAX_BODY_BYTES={self.max_body_bytes}"
            )
        # Each row takes four bytes at least: "[0],".
        if self.max_rows * 4 > self.max_body_bytes:
            raise BadSetting(
                f"IRIS_MAX_ROWS={self.max_rows} can never be reached with IRIS_MAX_BODY_BYTES={self.max_body_bytes}: "
                "lower the one or raise the other"
            )

    @property
    def has_cache(self) -> bool:
        """Whether there is to be a prediction cache."""
        return self.cache == "on" or (self.cache == "auto" and ROLES[self.role].cached)


NAMES = [one.name for one in fields(Settings)]
# Settings that only bin/serve obeys. Another WSGI server that calls the application has its own options for these.
OF_THE_SERVER = {
    *("host", "port", "threads", "workers", "waiters", "calls", "connections", "queue", "pending_bytes", "header_seconds"),
    *("request_seconds", "idle_seconds", "send_seconds", "grace_seconds", "drain_seconds"),
}
# Kubernetes sets these variables in each pod for each Service of its namespace, here for one named iris or iris-anything.
SERVICE_VARIABLES = (
    (r"SERVICE_HOST", r"[0-9A-Fa-f.:]+"),
    (r"SERVICE_PORT(_[A-Z0-9_]+)?", r"[0-9]+"),
    (r"PORT(_[0-9]+_(TCP|UDP|SCTP))?", r"(tcp|udp|sctp)://[!-~]+"),
    (r"PORT_[0-9]+_(TCP|UDP|SCTP)_PROTO", r"tcp|udp|sctp"),
    (r"PORT_[0-9]+_(TCP|UDP|SCTP)_PORT", r"[0-9]+"),
    (r"PORT_[0-9]+_(TCP|UDP|SCTP)_ADDR", r"[0-9A-Fa-f.:]+"),
)
is_service_variable = re.compile(
    "|".join(f"{PREFIX}([A-Z0-9_]+_)?{name}=({value})" for name, value in SERVICE_VARIABLES)
).fullmatch


def name_of(field_name: str) -> str:
    return PREFIX + field_name.upper()


def flag_of(field_name: str) -> str:
    return "--" + field_name.replace("_", "-")


def checked(name: str, value: str, cast: Callable[[str], Any], secret: bool = False) -> Any:
    try:
        return cast(value)
    except ValueError as error:
        raise BadSetting(f"{name}{'' if secret else f'={value[:60]!r}'} {error}") from None


def add_flags(
    parser: argparse.ArgumentParser, only: Sequence[str] = (), defaults: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """A flag for each setting (or for those named in `only`), with its help, its variable and its default.

    `defaults` are those that differ in this command.
    """
    for one in fields(Settings):
        if not only or one.name in only:
            told = f"{one.metadata['help']} ({name_of(one.name)}, default {defaults.get(one.name, one.default)})"
            parser.add_argument(flag_of(one.name), metavar="VALUE", help=told)


def unknown(name: str, known: Sequence[str]) -> BadSetting:
    # Imported only to complain.
    import difflib

    near = difflib.get_close_matches(name, known, 1)
    return BadSetting(f"{name} is no setting" + (f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"))


def environment_values(environ: Mapping[str, str]) -> dict[str, Any]:
    """Returns the settings in the environment by their names. Raises BadSetting."""
    known = {name_of(one.name): one for one in fields(Settings)}
    values: dict[str, Any] = {}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or is_service_variable(f"{name}={environ[name]}"):
            continue
        if name not in known:
            raise unknown(name, list(known))
        values[known[name].name] = checked(name, environ[name], **known[name].metadata["check"])
    return values


def application_settings(environ: Mapping[str, str], arguments: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """Returns the settings of an application that another WSGI server calls, and the variables that have no effect there.

    The arguments of `create_app` win over the environment. Raises BadSetting.
    """
    values = environment_values(environ)
    ignored = [name_of(name) for name in values if name in OF_THE_SERVER]
    checks = {one.name: one.metadata["check"] for one in fields(Settings)}
    for name, value in arguments.items():
        if name in OF_THE_SERVER:
            raise BadSetting(
                f"{name} is a setting of bin/serve alone; the WSGI server that calls create_app() has its own option for it"
            )
        if name not in checks:
            raise unknown(name, [name for name in NAMES if name not in OF_THE_SERVER])
        values[name] = checked(name, str(value), **checks[name])
    # That server alone bounds the bytes that wait.
    values = {name: value for name, value in values.items() if name not in OF_THE_SERVER} | {"pending_bytes": MOST_BYTES}
    return Settings(**values), ignored


def read_settings(
    environ: Mapping[str, str], flags: Mapping[str, str | None], defaults: Mapping[str, Any] = MappingProxyType({})
) -> Settings:
    """The environment's IRIS_* variables, then the flags that were given; `defaults` are other than usual. Raises BadSetting."""
    values = {**defaults, **environment_values(environ)}
    for one in fields(Settings):
        if (given := flags.get(one.name)) is not None:
            if one.metadata["check"]["secret"] and has_password(unquote(given)):
                raise BadSetting(
                    f"{flag_of(one.name)} has a password, and every user of a machine can read its command lines: give it as "
                    f"{name_of(one.name)} in the environment, in Kubernetes from a Secret by secretKeyRef"
                )
            values[one.name] = checked(flag_of(one.name), given, **one.metadata["check"])
    return Settings(**values)
