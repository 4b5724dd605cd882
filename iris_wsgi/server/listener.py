"""The socket that clients connect to: bound early, limited by descriptors, closed without losing anybody."""

import resource
import select
import socket
import struct
from array import array
from contextlib import suppress
from errno import EACCES, EADDRINUSE
from math import inf

from iris_wsgi.settings import BadSetting, Settings

# Connections over the limit that may wait, after their 503, for their client to close.
MOST_TURNED_AWAY = 64
# What a worker of any role opens besides its connections: the log, the model, stores, and what libraries need.
DESCRIPTORS_FOR_THE_REST = 32
# The parent has one for each worker and each replacement, and these.
DESCRIPTORS_OF_THE_PARENT = 16
# The maximum number of requests of a process that call other servers at the same time; further ones wait for a thread.
MAX_UPSTREAM_CALLS = 16
# Fewer connections would not serve anybody: probes need some.
LEAST_CONNECTIONS = 8
# From <asm-generic/socket.h> and <linux/bpf_common.h>; Python has no names for them.
SO_ATTACH_FILTER = 26
BPF_LD_BYTE, BPF_AND, BPF_JUMP_IF_EQUAL, BPF_RET = 0x30, 0x54, 0x15, 0x06
# To listen on every address, and one that can be opened.
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def url_of(host: str, port: int) -> str:
    """Where somebody on this machine finds who listens there."""
    host = EVERYWHERE.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def bind(settings: Settings) -> socket.socket:
    """A bound socket that does not listen yet, so that a taken port is found before the model is loaded. Raises BadSetting."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, UnicodeError) as error:
        where = f"IRIS_HOST={settings.host} IRIS_PORT={settings.port}"
        taken = getattr(error, "errno", None) in (EADDRINUSE, EACCES)
        way_out = "choose another with --port" if taken else "is it an address of this machine?"
        raise BadSetting(f"{where}: cannot listen there: {reason(error)}; {way_out}") from None
    return bound


def reason(error: OSError | UnicodeError) -> str | None:
    """Of what a name or an address cannot be used for: one with an empty part, or too long a part, is not even looked up."""
    return error.strerror if isinstance(error, OSError) else "it is no name"


def descriptor_limit() -> float:
    """How many descriptors a process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return inf if soft == resource.RLIM_INFINITY else soft


def other_descriptors(settings: Settings) -> int:
    """How many descriptors a worker keeps for other things than its clients: each call has one for each server that it asks."""
    asked = len(settings.members.split(",")) if settings.members else bool(settings.pred_url)
    return DESCRIPTORS_FOR_THE_REST + MAX_UPSTREAM_CALLS * asked


def check_descriptors(settings: Settings, workers: int) -> None:
    """Raises BadSetting if the limit of open files leaves no room for connections, or for the pipes of so many workers."""
    needed = max(other_descriptors(settings) + LEAST_CONNECTIONS, DESCRIPTORS_OF_THE_PARENT + 2 * workers)
    if descriptor_limit() < needed:
        raise BadSetting(
            f"a process may open {descriptor_limit():g} files here (ulimit -n), and role {settings.role} with {workers} "
            f"worker{'s' * (workers > 1)} needs {needed} at least: raise it, as by ulimit -n 1024, LimitNOFILE= of systemd, or "
            "--ulimit nofile=1024 of a container"
        )


def connection_limits(settings: Settings) -> tuple[int, int]:
    """How many connections to serve, and how many more to turn away politely at a time, as far as descriptors allow."""
    spare = max(LEAST_CONNECTIONS, descriptor_limit() - other_descriptors(settings))
    turned_away = int(min(MOST_TURNED_AWAY, spare // 4))
    return int(min(settings.connections, spare - turned_away)), turned_away


def refuse_newcomers(listener: socket.socket) -> None:
    """Lets the kernel drop requests to connect, so that nobody is let in between the last accept() and close().

    Only a SYN without ACK is dropped: a handshake that has begun must end, and connections inherit the listener's filter.
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
    # Elsewhere than on Linux there is no such option, and that moment stays as short as it is.
    with suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


class Poll:
    """poll() with epoll's manners, for systems without epoll."""

    def __init__(self) -> None:
        self.poller = select.poll()
        self.register, self.modify, self.unregister = self.poller.register, self.poller.modify, self.poller.unregister

    def poll(self, timeout: float, _events: int) -> list[tuple[int, int]]:
        """Returns all that is ready: the next call would begin with the same descriptors, and never come to the others."""
        return self.poller.poll(timeout * 1000)

    def close(self) -> None:
        pass
