"""A server that joins behind a balancer of connections gets its share of the load from clients that keep their connections."""

import sys

import pytest
from haproxy_process import Proxy, start_haproxy
from http_clients import (
    LABEL_REQUEST,
    LIVEZ,
    METRICS,
    NO_COVERAGE,
    POOLED_REQUEST,
    LoadGenerator,
    fetch,
    metric_sum,
    stderr_to,
    wait_until,
)
from server_process import ServerProcess

from iris_wsgi.server.connection import MAX_AGE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the load generator uses epoll")
NAMES = ("one", "two", "three")
CLIENTS = 8
# Requests in progress have more time than this.
AGE = 5.0
# A balancer of connections, like a Service of Kubernetes: it knows no requests. It repeats only a failed connect.
TCP_PROXY = """
defaults
    mode tcp
    timeout connect 60s
    timeout client 120s
    timeout server 120s
    timeout check 60s
    retries 3
    option redispatch
frontend front
    bind 127.0.0.1:{front}
    default_backend servers
backend servers
    balance leastconn
    option httpchk GET /readyz
    http-check expect status 200
    default-server check inter 50ms fastinter 20ms downinter 50ms fall 1 rise 1
    server one 127.0.0.1:{one}
    server two 127.0.0.1:{two}
    server three 127.0.0.1:{three}
"""
MIXTURE = [LABEL_REQUEST] * 19 + [POOLED_REQUEST] + [LIVEZ] * 5


@pytest.fixture
def proxy(tmp_path):
    with start_haproxy(tmp_path, TCP_PROXY, NAMES) as proxy_server:
        yield proxy_server


def connections(proxy: Proxy) -> list[int]:
    return [int(count) for count in proxy.column("scur").values()]


def requests_of(server: ServerProcess) -> float:
    """Returns the number of requests that the server has answered, without those of the checks and of this function."""
    text = fetch(server, METRICS).body.decode()
    return sum(metric_sum(text, "http_requests_total", route=route) for route in ("/predict/label", "/predict/batch", "/livez"))


def shares(servers: list[ServerProcess], load: LoadGenerator, count: int) -> list[float]:
    """Returns the shares of the servers in at least `count` further requests."""
    before, had = [requests_of(server) for server in servers], load.responses
    wait_until(lambda: load.responses >= had + count, "further responses")
    answered = [requests_of(server) - already for server, already in zip(servers, before, strict=True)]
    return [number / sum(answered) for number in answered]


def test_load_evens_out_within_the_age_of_a_connection_after_a_server_joins(run, proxy, clock):
    def start(number: int) -> ServerProcess:
        options = ("--port", str(proxy.ports[number]), "--connection-seconds", str(AGE))
        server = run(*options, clock=clock, under=stderr_to("/dev/null"), **NO_COVERAGE)
        wait_until(lambda: proxy.states()[NAMES[number]] == "UP", f"haproxy sees server {NAMES[number]}")
        return server

    servers = [start(0), start(1)]
    with LoadGenerator(proxy, CLIENTS, 0, MIXTURE) as load:
        wait_until(lambda: connections(proxy) == [4, 4, 0] and load.responses > 100, "load on both servers")
        servers.append(start(2))
        # No connection ends by itself, so the server that joined is idle.
        assert shares(servers, load, 500)[2] == 0 and connections(proxy) == [4, 4, 0]
        clock.advance(AGE * MAX_AGE)
        # haproxy may place a connection while the previous one of its client still counts, so the numbers vary by one or two.
        wait_until(lambda: min(connections(proxy)) > 0, "connections of each server")
        assert min(shares(servers, load, 1000)) > 0.05
    assert (load.lost, load.refused, set(load.statuses)) == ([], 0, {200}), load.errors
