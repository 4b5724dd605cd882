"""Listening socket: binding, limits of file descriptors, and a close that loses no client."""

import resource
import select
import socket
import struct
from array import array
from contextlib import suppress
from errno import EACCES, EADDRINUSE
from math import inf

from iris_wsgi.settings import BadSetting, Settings

# The maximum number of rejected connections that linger after their 503.
MAX_REJECTED = 64
# The descriptors that a worker of any role needs for the log, the model, the stores, and libraries.
WORKER_DESCRIPTORS = 32
# The parent has these descriptors, and one for each worker and each replacement.
PARENT_DESCRIPTORS = 16
# The maximum number of requests of a process that call other servers at the same time; further ones wait for a thread.
MAX_UPSTREAM_CALLS = 16
# Probes alone need a few connections.
MIN_CONNECTIONS = 8
# From <asm-generic/socket.h> and <linux/bpf_common.h>; Python has no names for them.
SO_ATTACH_FILTER = 26
BPF_LD_BYTE, BPF_AND, BPF_JUMP_IF_EQUAL, BPF_RET = 0x30, 0x54, 0x15, 0x06
# Addresses to listen on, with an address to connect to.
WILDCARD_HOSTS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def server_url(host: str, port: int) -> str:
    """Returns the URL of a listening server for clients on this machine."""
    host = WILDCARD_HOSTS.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def bind(settings: Settings) -> socket.socket:
    """Returns a bound socket that does not listen yet, so that a port in use is found early. Raises BadSetting."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, UnicodeError) as error:
        where = f"IRIS_HOST={settings.host} IRIS_PORT={settings.port}"
        in_use = getattr(error, "errno", None) in (EADDRINUSE, EACCES)
        remedy = "choose another with --port" if in_use else "is it an address of this machine?"
        raise BadSetting(f"{where}: cannot listen there: {reason(error)}; {remedy}") from None
    return bound


def reason(error: OSError | UnicodeError) -> str | None:
    """Returns the reason of a failed lookup. A name with an empty or too long label raises UnicodeError."""
    return error.strerror if isinstance(error, OSError) else "it is not a host name"


def descriptor_limit() -> float:
    """Returns the maximum number of descriptors of a process."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return inf if soft == resource.RLIM_INFINITY else soft


def reserved_descriptors(settings: Settings) -> int:
    """Returns the descriptors that a worker reserves: its own, and one for each upstream server of each call."""
    asked = len(settings.members.split(",")) if settings.members else bool(settings.pred_url)
    return WORKER_DESCRIPTORS + MAX_UPSTREAM_CALLS * asked


def check_descriptors(settings: Settings, workers: int) -> None:
    """Raises BadSetting if the limit of open files is too low for connections, or for the pipes of all workers."""
    needed = max(reserved_descriptors(settings) + MIN_CONNECTIONS, PARENT_DESCRIPTORS + 2 * workers)
    if descriptor_limit() < needed:
        raise BadSetting(
            f"a process may open {descriptor_limit():g} files here (ulimit -n), and role {settings.role} with {workers} "
            f"worker{'s' * (workers > 1)} needs {needed} at least: raise it, as by ulimit -n 1024, LimitNOFILE= of systemd, or "
            "--ulimit nofile=1024 of a container"
        )


def connection_limits(settings: Settings) -> tuple[int, int]:
    """Returns the maximum number of connections, and of rejected connections that linger."""
    spare = max(MIN_CONNECTIONS, descriptor_limit() - reserved_descriptors(settings))
    rejected = int(min(MAX_REJECTED, spare // 4))
    return int(min(settings.connections, spare - rejected)), rejected


def drop_new_connections(listener: socket.socket) -> None:
    """Lets the kernel drop new connections, so that no client connects between the last accept() and close().

    The filter drops only a SYN without ACK. Handshakes in progress must end, and connections inherit the filter.
    """
    flags, syn_and_ack, syn = 13, 0x12, 0x02
    steps = [
        (BPF_LD_BYTE, 0, 0, flags),
        (BPF_AND, 0, 0, syn_and_ack),
        (BPF_JUMP_IF_EQUAL, 0, 1, syn),
        (BPF_RET, 0, 0, 0),
        (BPF_RET, 0, 0, 0xFFFFFFFF),
    ]
    code = array("B", b"".join(struct.pack("HBBI", *step) for step in steps))
    program = struct.pack("HP", len(steps), code.buffer_info()[0])
    # Only Linux has this option.
    with suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


class Poll:
    """Replacement of epoll on other systems, by poll()."""

    def __init__(self) -> None:
        self.poller = select.poll()
        self.register, self.modify, self.unregister = self.poller.register, self.poller.modify, self.poller.unregister

    def poll(self, timeout: float, _events: int) -> list[tuple[int, int]]:
        """Returns all events. With a limit the next call would return the same descriptors first, and never the others."""
        return self.poller.poll(timeout * 1000)

    def close(self) -> None:
        pass
