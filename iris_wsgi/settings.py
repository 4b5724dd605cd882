"""Table of all settings, and the only reader of the environment."""

import argparse
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

from iris_wsgi.console import project_folder
from iris_wsgi.roles import ROLES
from iris_wsgi.setting_types import (
    database_address,
    folder,
    fraction,
    has_password,
    host_names,
    integer,
    one_of,
    redis_address,
    registry,
    seal_text,
    seconds,
    server_address,
    species,
    text,
    url_prefix,
)

PREFIX = "IRIS_"
MAX_BYTES = 1_099_511_627_776
# The ends of the file names of a model, packed or not.
MODEL_FILES = ("golden.json", ".onnx", ".joblib", ".pkl")
# The folder in the current one that is served by default, and the one in an installed package. setup.cfg copies it from `model`.
LOCAL_MODEL = "model"
PACKAGED_MODEL = "iris_model"


class BadSetting(Exception):
    """Raised for a setting that is unknown, invalid, or in conflict with another; the message is one line with its name."""


def setting(default: Any, cast: Callable[[str], Any], help_text: str, secret: bool = False) -> Any:
    """Returns a dataclass field. The value of a `secret` setting never appears in messages."""
    return field(default=default, repr=not secret, metadata={"help": help_text, "check": {"cast": cast, "secret": secret}})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings. The field `name` is IRIS_NAME in the environment and --name on the command line."""

    host: str = setting("127.0.0.1", text, "address to listen on; 0.0.0.0: all IPv4 addresses of the machine")
    port: int = setting(8000, integer(0, 65535), "TCP port to listen on; 0: a free port")
    allowed_hosts: str = setting(
        "",
        host_names,
        "accepted host names, separated by commas; .example.com includes its subdomains, * is every name; "
        "empty: loopback names on a loopback address, every name on other addresses",
    )
    role: str = setting("all", one_of(*ROLES), f"pattern to serve: {', '.join(ROLES)}")
    threads: int = setting(0, integer(0, 1000), "threads of a process that answer requests; 0: chosen by CPUs and role")
    workers: int = setting(0, integer(0, 64), "worker processes; 0: chosen by the limits of CPU and memory")
    model_dir: str = setting(
        "",
        folder,
        "folder with golden.json, label.json, and the ONNX model; empty: model in the current folder if it has a model, "
        "otherwise the Iris model",
    )
    model_seal: str = setting("", seal_text, "SHA-256 of golden.json, which lists the checksums of the other files; empty: any")
    max_body_bytes: int = setting(1_048_576, integer(64, 1_073_741_824), "maximum size of a request body in bytes")
    max_rows: int = setting(10_000, integer(1, 10_000_000), "maximum number of rows in a request")
    deadline_ms: int = setting(
        10_000, integer(0, 3_600_000), "maximum milliseconds from a request to its response, then 504; 0: unlimited"
    )
    batch_rows: int = setting(
        0, integer(0, 1000), "maximum number of single-row requests that one run of the model serves; 0: no batching"
    )
    state_dir: str = setting(
        "",
        folder,
        "folder of the embedded stores, created when needed; empty: iris-wsgi in $XDG_STATE_HOME or in ~/.local/state, "
        "or for bin/serve the folder state of the project",
    )
    redis_url: str = setting(
        "", redis_address, "Redis for the jobs, shared by several machines; empty: SQLite in the state folder", True
    )
    database_url: str = setting(
        "",
        database_address,
        "database of the items and of the command batch: sqlite:///file, sqlite:////absolute/file, or postgresql://…; "
        "empty: SQLite in the state folder for the items",
        True,
    )
    items_bytes: int = setting(16_777_216, integer(4096, MAX_BYTES), "maximum memory of cached items in bytes, for each process")
    items_seconds: float = setting(60.0, seconds(0.1, 86400), "maximum age of a cached item in seconds")
    jobs_queued: int = setting(10_000, integer(1, 10_000_000), "maximum number of queued jobs, then 503")
    jobs_attempts: int = setting(5, integer(1, 1000), "attempts to run a job before it becomes a dead letter")
    lease_seconds: float = setting(
        10.0, seconds(0.1, 3600), "lease of a claimed job in seconds; another worker claims the job of a dead worker after it"
    )
    keep_seconds: float = setting(3600.0, seconds(0.1, 999999), "seconds until a finished job expires, then 410")
    escalate_below: float = setting(
        1.0, fraction, "probability of the fast prediction below which a job runs the full model; 1: always"
    )
    cache: str = setting("auto", one_of("auto", "on", "off"), "prediction cache; auto: on in the roles prediction_cache and all")
    cache_bytes: int = setting(
        8_388_608, integer(1024, MAX_BYTES), "maximum memory of the prediction cache in bytes, for each process"
    )
    cache_seconds: float = setting(3600.0, seconds(0.01, 999999), "maximum age of a cached prediction in seconds")
    cache_redis_url: str = setting(
        "",
        redis_address,
        "Redis as second level of the caches of predictions and items, shared by several machines; empty: memory only",
        True,
    )
    pred_url: str = setting("", server_address, "server of role pred, for role prep: the second half of its model")
    member: str = setting("", species, "species whose model the role member serves")
    members: str = setting(
        "",
        registry,
        "servers of role member for role gateway: setosa=http://…,versicolor=…; empty in role all: members in this process",
    )
    quorum: int = setting(0, integer(0, 1000), "members that must answer, otherwise 503; 0: more than half")
    abstain_below: float = setting(
        0.0, fraction, "probability of the best species below which the ensemble abstains; 0: it never abstains"
    )
    ensemble_ms: int = setting(1000, integer(1, 3_600_000), "maximum milliseconds that a gateway waits for its members")
    edge_dir: str = setting("", folder, "folder of the edge bundle (bin/edge build) to serve at /edge/; empty: none")
    edge_required: str = setting(
        "yes",
        one_of("yes", "no"),
        "whether a damaged bundle, or one for another model, prevents the start; no: a warning, and no bundle",
    )
    url_prefix: str = setting(
        "",
        url_prefix,
        "URL path prefix that a proxy strips, such as /iris; forwarded: the value of X-Forwarded-Prefix, if the proxy always"
        " sets it; empty: none",
    )
    token_file: str = setting(
        "",
        folder,
        "file of bearer tokens, one per line, required on all routes except health and metrics; empty: no authentication",
    )
    connections: int = setting(4096, integer(1, 1_000_000), "maximum number of connections of a process, then 503")
    connection_seconds: float = setting(
        300.0,
        seconds(0, 999999),
        "age of a connection in seconds, plus or minus a tenth, then its next response closes it; 0: unlimited",
    )
    connection_requests: int = setting(
        0, integer(0, 1_000_000_000), "maximum number of requests of a connection, whose last response closes it; 0: unlimited"
    )
    queue: int = setting(64, integer(1, 100_000), "maximum number of requests that wait for a thread, then 503")
    pending_bytes: int = setting(
        16_777_216,
        integer(64, MAX_BYTES),
        "maximum bytes of unanswered requests, then 503, and of unread responses, then the oldest are dropped",
    )
    request_seconds: float = setting(30.0, seconds(0.1, 3600), "maximum seconds to receive a request, then 408")
    grace_seconds: float = setting(
        0.0, seconds(0, 3600), "seconds of service after SIGTERM without readiness, so that load balancers move traffic away"
    )
    drain_seconds: float = setting(10.0, seconds(0, 3600), "maximum seconds after the grace to finish open requests")

    def __post_init__(self) -> None:
        for one in fields(self):
            checked(name_of(one.name), str(getattr(self, one.name)), **one.metadata["check"])
        object.__setattr__(self, "model_dir", self.model_dir or default_model_dir())
        object.__setattr__(self, "state_dir", self.state_dir or default_state_dir(os.environ))
        if self.role == "prediction_cache" and self.cache == "off":
            raise BadSetting("IRIS_CACHE=off leaves nothing of IRIS_ROLE=prediction_cache; web_single has the same routes")
        if self.cache_redis_url and not (self.has_cache or ROLES[self.role].items):
            raise BadSetting("IRIS_CACHE_REDIS_URL is the second level of a cache that is off; IRIS_CACHE=on turns it on")
        needed = ROLES[self.role].required_setting
        if needed and not getattr(self, needed):
            raise BadSetting(f"IRIS_ROLE={self.role} requires {name_of(needed)}, which is empty")
        if self.members and self.quorum > (count := len(self.members.split(","))):
            raise BadSetting(f"IRIS_QUORUM={self.quorum} is more than the {count} members in IRIS_MEMBERS")
        if self.pending_bytes < self.max_body_bytes:
            raise BadSetting(
                f"IRIS_PENDING_BYTES={self.pending_bytes} has no room for one body of IRIS_MAX_BODY_BYTES={self.max_body_bytes}"
            )
        # Each row takes at least four bytes: "[0],".
        if self.max_rows * 4 > self.max_body_bytes:
            raise BadSetting(
                f"IRIS_MAX_ROWS={self.max_rows} cannot be reached with IRIS_MAX_BODY_BYTES={self.max_body_bytes}: "
                "lower the first or raise the second"
            )

    @property
    def has_cache(self) -> bool:
        """True if predictions are cached."""
        return self.cache == "on" or (self.cache == "auto" and ROLES[self.role].cached)

    @property
    def has_embedded_store(self) -> bool:
        """True if jobs or items are in the state folder."""
        role = ROLES[self.role]
        return (role.jobs and not self.redis_url) or (role.items and not self.database_url)


def default_model_dir() -> str:
    """Returns the folder `model` in the current folder if it has a model, else that of the Iris model.

    A model that is not packed counts too: the start reports it, instead of serving another one.
    """
    packaged = os.path.join(os.path.dirname(os.path.abspath(__file__)), PACKAGED_MODEL)
    if has_model(LOCAL_MODEL):
        return LOCAL_MODEL
    if os.path.isdir(packaged):
        return packaged
    project = project_folder()
    return os.path.join(project, LOCAL_MODEL) if project else LOCAL_MODEL


def has_model(path: str) -> bool:
    try:
        return any(name.endswith(MODEL_FILES) for name in os.listdir(path))
    except OSError:
        return False


def default_state_dir(environ: Mapping[str, str]) -> str:
    """Returns the folder of the stores according to the XDG Base Directory Specification, or `state` in that of the project."""
    if project := project_folder():
        return os.path.join(project, "state")
    base = environ.get("XDG_STATE_HOME", "")
    # The specification ignores relative paths.
    if os.path.isabs(base):
        return os.path.join(base, "iris-wsgi")
    home = environ.get("HOME") or home_of_user()
    # A container may have a user without an entry in /etc/passwd.
    return os.path.join(home, ".local/state/iris-wsgi") if os.path.isabs(home) else "state"


def home_of_user() -> str:
    # Imported only without HOME.
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return ""


NAMES = [one.name for one in fields(Settings)]
# The groups of the flags in the help of a command.
GROUPS = {
    "model and state": ("role", "model_dir", "model_seal", "state_dir"),
    "address and access": ("host", "port", "allowed_hosts", "url_prefix", "token_file"),
    "requests of every pattern": ("max_body_bytes", "max_rows", "deadline_ms", "batch_rows"),
    "asynchronous and sync-async (jobs)": (
        *("redis_url", "jobs_queued", "jobs_attempts", "lease_seconds", "keep_seconds", "escalate_below"),
    ),
    "prediction cache": ("cache", "cache_bytes", "cache_seconds", "cache_redis_url"),
    "data cache (items)": ("database_url", "items_bytes", "items_seconds"),
    "prep-pred": ("pred_url",),
    "horizontal microservice": ("member", "members", "quorum", "abstain_below", "ensemble_ms"),
    "edge": ("edge_dir", "edge_required"),
    "processes, connections, and the end": (
        *("workers", "threads", "connections", "connection_seconds", "connection_requests", "queue", "pending_bytes"),
        *("request_seconds", "grace_seconds", "drain_seconds"),
    ),
}
# The values of a flag in its help, by the last word of its name. Others are numbers.
METAVARS = {
    "bytes": "BYTES",
    "rows": "ROWS",
    "seconds": "SECONDS",
    "ms": "MILLISECONDS",
    "below": "PROBABILITY",
    "dir": "DIR",
    "file": "FILE",
    "url": "URL",
    "host": "ADDRESS",
    "hosts": "NAME,…",
    "port": "PORT",
    "prefix": "PATH",
    "role": "ROLE",
    "seal": "sha256:…",
    "member": "SPECIES",
    "members": "NAME=URL,…",
    "cache": "auto|on|off",
    "required": "yes|no",
}
# Settings of bin/serve alone. Another WSGI server that calls the application has its own options for these.
SERVER_SETTINGS = {
    *("host", "port", "threads", "workers", "connections", "connection_seconds", "connection_requests", "queue"),
    *("pending_bytes", "request_seconds", "grace_seconds", "drain_seconds"),
}
# Settings of earlier versions. Each stops the start with this advice, so that no user relies on a setting without effect.
REMOVED = {
    "batch_delay_ms": "remove it: a batch never waits for more rows",
    "calls": "remove it: the maximum is always 16 calls to other servers in a process",
    "fast_model_dir": "put the fast model into the folder fast of IRIS_MODEL_DIR",
    "header_seconds": "remove it: the head of a request has 10 seconds, or IRIS_REQUEST_SECONDS if that is less",
    "hedge_percentile": "remove it: a slow call to another server is never sent twice",
    "idle_seconds": "remove it: an idle connection is always closed after 60 seconds",
    "items_check_seconds": "remove it: a server always sees changes of other servers within a second",
    "items_missing_seconds": "remove it: an unknown id is always cached for 5 seconds",
    "items_redis_url": "set IRIS_CACHE_REDIS_URL, which is the Redis of both caches",
    "items_stale_seconds": "remove it: expired items are always kept for an hour while the database is down",
    "job_seconds": "remove it: a run of the model on jobs always has 300 seconds",
    "jobs_claimed": "remove it: a worker always claims up to 64 jobs",
    "keep_failed_seconds": "remove it: a dead letter always expires after 7 days",
    "retry_seconds": "remove it: the first pause before a retry is always about a second",
    "send_seconds": "remove it: a client always has 30 seconds to read a response, or the next 16 KiB of it",
    "wait_seconds": "remove it: Prefer: wait=N always waits for up to 30 seconds",
    "waiters": "remove it: the maximum is always 64 waiting requests in a process",
}
# Kubernetes sets these variables in each pod for each Service of its namespace, here for a Service named iris or iris-….
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
    """Adds a flag for each setting, or for those in `only`. `defaults` are the defaults that differ for this command."""
    settings = {one.name: one for one in fields(Settings)}
    for title, names in GROUPS.items():
        group = parser.add_argument_group(title)
        for name in names:
            if not only or name in only:
                value = defaults.get(name, default_in_help(name, settings[name].default))
                text = f"{settings[name].metadata['help']} ({name_of(name)}, default {'empty' if value == '' else value})"
                metavar = METAVARS.get(name.rpartition("_")[2], "NUMBER")
                # argparse formats the text with %.
                group.add_argument(flag_of(name), metavar=metavar, help=text.replace("%", "%%"))
    for name in set(only or REMOVED) & REMOVED.keys():
        parser.add_argument(flag_of(name), dest=f"removed {name}", help=argparse.SUPPRESS)


def default_in_help(name: str, default: Any) -> Any:
    """Returns the default of a setting. That of a folder depends on the machine, and bin/serve sets it in the environment."""
    if name == "model_dir":
        return os.environ.get(name_of(name)) or default_model_dir()
    if name == "state_dir":
        return os.environ.get(name_of(name)) or default_state_dir(os.environ)
    return default


def removed(name: str, field_name: str) -> BadSetting:
    return BadSetting(f"{name} was removed; {REMOVED[field_name]}")


def unknown(name: str, known: Sequence[str]) -> BadSetting:
    # Imported only for this message.
    import difflib

    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(known)}"
    return BadSetting(f"{name} is not a setting; {hint}")


def environment_values(environ: Mapping[str, str]) -> dict[str, Any]:
    """Returns the settings of the environment by name. Raises BadSetting."""
    known = {name_of(one.name): one for one in fields(Settings)}
    values: dict[str, Any] = {}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or is_service_variable(f"{name}={environ[name]}"):
            continue
        if (field_name := name.removeprefix(PREFIX).lower()) in REMOVED and name == name_of(field_name):
            raise removed(name, field_name)
        if name not in known:
            raise unknown(name, list(known))
        values[known[name].name] = checked(name, environ[name], **known[name].metadata["check"])
    return values


def application_settings(environ: Mapping[str, str], arguments: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """Returns the settings of an application under another WSGI server, and the variables that have no effect there.

    The arguments of `create_app` take precedence over the environment. Raises BadSetting.
    """
    values = environment_values(environ)
    ignored = [name_of(name) for name in values if name in SERVER_SETTINGS]
    checks = {one.name: one.metadata["check"] for one in fields(Settings)}
    for name, value in arguments.items():
        if name in REMOVED:
            raise removed(name, name)
        if name in SERVER_SETTINGS:
            raise BadSetting(
                f"{name} is a setting of bin/serve alone; the WSGI server that calls create_app() has its own option for it"
            )
        if name not in checks:
            raise unknown(name, [name for name in NAMES if name not in SERVER_SETTINGS])
        values[name] = checked(name, str(value), **checks[name])
    # Only bin/serve limits these bytes.
    values = {name: value for name, value in values.items() if name not in SERVER_SETTINGS} | {"pending_bytes": MAX_BYTES}
    return Settings(**values), ignored


def read_settings(
    environ: Mapping[str, str], flags: Mapping[str, str | None], defaults: Mapping[str, Any] = MappingProxyType({})
) -> Settings:
    """Returns the settings of the flags, else of the environment, else of `defaults`. Raises BadSetting."""
    values = {**defaults, **environment_values(environ)}
    for name in REMOVED:
        if flags.get(f"removed {name}") is not None:
            raise removed(flag_of(name), name)
    for one in fields(Settings):
        if (given := flags.get(one.name)) is not None:
            if one.metadata["check"]["secret"] and has_password(unquote(given)):
                raise BadSetting(
                    f"{flag_of(one.name)} has a password, and every user of a machine can read its command lines: pass it as "
                    f"{name_of(one.name)} in the environment, in Kubernetes from a Secret by secretKeyRef"
                )
            values[one.name] = checked(flag_of(one.name), given, **one.metadata["check"])
    return Settings(**values)
