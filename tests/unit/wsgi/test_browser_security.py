"""Allowed hosts: no page of another site reads a response by DNS rebinding, and probes work."""

import pytest
from http_clients import ROW, RawConnection, http_request
from server_process import start_server

from iris_wsgi.cli.main import main
from iris_wsgi.errors import Problem
from iris_wsgi.settings import BadSetting, read_settings
from iris_wsgi.wsgi.browser_security import AllowedHosts

LOOPBACK = ("localhost", "LOCALHOST:8000", "localhost.", "iris.localhost:1", "127.0.0.1", "127.9.9.9:80", "[::1]", "[::1]:8000")
LOOPBACK += ("[::ffff:127.0.0.1]", "[0:0:0:0:0:0:0:1]")
ADDRESSES = ("10.1.2.3", "10.1.2.3:8000", "[fd00::1]:8000", "0.0.0.0")
FOREIGN = ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "evillocalhost", "a", "127.1")
FOREIGN += ("7f00::1", "[7f00::1", "localhost:80:80", "127.0.0.1, evil.example", "evil.example:8000.", "user@localhost")


def allowed(listed: str, bound: str | None, host: str | None, **environ: str) -> bool:
    refused = AllowedHosts(listed, bound).check(environ if host is None else {"HTTP_HOST": host, **environ})
    assert refused is None or (isinstance(refused, Problem) and refused.status == 421)
    return refused is None


@pytest.mark.parametrize("bound", ["127.0.0.1", "127.0.1.1", "localhost", "::1"])
def test_on_a_loopback_address_only_loopback_names_are_allowed(bound):
    assert all(allowed("", bound, host) for host in (*LOOPBACK, bound.replace("::1", "[::1]"), "", None))
    assert not any(allowed("", bound, host) for host in (*FOREIGN, *ADDRESSES, "[7f00::1]", "[fe80::7f00:1]"))


@pytest.mark.long
@pytest.mark.parametrize("bound", ["0.0.0.0", "::", "192.0.2.7", "fd00::1", "nowhere.invalid"])
def test_on_other_addresses_any_host_is_allowed(bound):
    assert all(allowed("", bound, host) for host in (*LOOPBACK, *ADDRESSES, *FOREIGN, "", None))


@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0", None])
def test_listed_names_are_allowed_next_to_loopback_names_and_addresses_which_dns_rebinding_cannot_use(bound):
    listed = "Iris.example,.inner.example,[fd00::9]"
    good = ("iris.example", "IRIS.example:8000", "iris.example.", "inner.example", "a.b.inner.example", "[fd00::9]:80")
    assert all(allowed(listed, bound, host) for host in (*good, *LOOPBACK, *ADDRESSES, "", None))
    bad = ("a.iris.example", "notinner.example", ".inner.example.evil", "iris.example.evil", *FOREIGN)
    assert not any(allowed(listed, bound, host) for host in bad)


@pytest.mark.parametrize("listed", ["*", "iris.example,*"])
def test_a_star_allows_any_host(listed):
    assert all(allowed(listed, "127.0.0.1", host) for host in (*LOOPBACK, *ADDRESSES, *FOREIGN, "", None))


def test_under_another_server_its_name_in_the_environ_decides():
    for name in ("127.0.0.1", "localhost", "::1"):
        assert allowed("", None, "localhost:8000", SERVER_NAME=name) and not allowed("", None, "evil.example", SERVER_NAME=name)
    for name in ("0.0.0.0", "waitress.invalid", "iris.example", ""):
        assert allowed("", None, "evil.example", SERVER_NAME=name)


def test_a_name_of_this_machine_with_a_loopback_address_is_allowed_too(monkeypatch):
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("127.0.1.1", 0))])
    assert (
        allowed("", "laptop", "Laptop:8000") and allowed("", "laptop", "localhost") and not allowed("", "laptop", "evil.example")
    )


@pytest.mark.parametrize(
    "value", ["a b", "a:80", "a,,b", ",", "http://a", "a/b", "*.example.com", "a.", "..a", "é", "[::1]:80", "**"]
)
def test_an_invalid_list_is_refused(value):
    with pytest.raises(BadSetting, match="^IRIS_ALLOWED_HOSTS=.* must be host names without a port"):
        read_settings({"IRIS_ALLOWED_HOSTS": value}, {})


@pytest.fixture(scope="module")
def server():
    started = start_server()
    yield started
    started.stop()


def request_to_host(host: str, method: str, path: str, document=None, *fields: str) -> bytes:
    return http_request(method, path, document, *fields).replace(b"Host: localhost", b"Host: " + host.encode())


def test_a_foreign_host_gets_421_on_every_route_and_changes_nothing(server):
    with RawConnection(server) as connection:
        before = connection.exchange(request_to_host("localhost", "GET", "/items/0000")).body
        requests = [
            ("GET", path) for path in ("/", "/livez", "/readyz", "/health", "/metrics", "/openapi.json", "/docs", "/nowhere")
        ]
        requests += [("GET", "/v2"), ("GET", "/v1/models"), ("OPTIONS", "/predict"), ("BREW", "/livez"), ("DELETE", "/cache")]
        requests += [("PUT", "/items/0000", {"data": [[9, 9, 9, 9]]}), ("POST", "/jobs", {"data": [ROW]})]
        for words in requests:
            response = connection.exchange(request_to_host("evil.example:8000", *words))
            assert (words, response.status, response.closes) == (words, 421, False)
            if words[1].startswith("/v"):
                assert list(response.json()) == ["error"] and response.headers["content-type"] == "application/json"
            else:
                assert response.json()["title"] == "Misdirected Request" and "IRIS_ALLOWED_HOSTS" in response.json()["detail"]
                assert response.headers["content-type"] == "application/problem+json"
            assert b"evil" not in response.body
        assert connection.exchange(request_to_host("localhost", "GET", "/items/0000")).body == before
        assert b'status="421"' in connection.exchange(request_to_host("localhost", "GET", "/metrics")).body


def test_the_host_of_an_absolute_target_counts(server):
    with RawConnection(server) as connection:
        assert connection.exchange(b"GET http://evil.example/livez HTTP/1.1\r\nHost: localhost\r\n\r\n").status == 421
        assert connection.exchange(b"GET http://localhost/livez HTTP/1.1\r\nHost: evil.example\r\n\r\n").status == 200


def test_a_request_without_a_host_is_allowed_because_browsers_never_send_one(server):
    for request_bytes in (b"GET /livez HTTP/1.0\r\n\r\n", b"GET /livez HTTP/1.1\r\nHost:\r\n\r\n"):
        with RawConnection(server) as connection:
            assert connection.exchange(request_bytes).status == 200


def test_a_body_for_a_foreign_host_is_not_requested_and_not_waited_for(server):
    with RawConnection(server) as connection:
        fields = ("Content-Type: application/json", "Content-Length: 99999", "Expect: 100-continue")
        response = connection.exchange(request_to_host("evil.example", "POST", "/predict/batch", None, *fields))
        assert (response.status, response.closes) == (421, True)


def test_the_token_is_not_checked_for_a_foreign_host(run, tmp_path):
    (tmp_path / "tokens").write_text("a-token-of-this-test\n")
    server = run("--token-file", str(tmp_path / "tokens"))
    with RawConnection(server) as connection:
        token = "Authorization: Bearer a-token-of-this-test"
        assert connection.exchange(request_to_host("evil.example", "GET", "/label")).status == 421
        assert connection.exchange(request_to_host("evil.example", "GET", "/label", None, token)).status == 421
        assert connection.exchange(request_to_host("evil.example", "GET", "/metrics")).status == 421
        assert connection.exchange(request_to_host("localhost", "GET", "/label")).status == 401
        assert connection.exchange(request_to_host("localhost", "GET", "/label", None, token)).status == 200


def test_a_server_in_a_cluster_accepts_probes_by_address_and_members_by_name(run):
    server = run("--host", "0.0.0.0", "--role", "member", "--member", "setosa")
    with RawConnection(server) as connection:
        for host in ("10.1.2.3:8000", "member-setosa:8000", "localhost"):
            assert connection.exchange(request_to_host(host, "GET", "/readyz")).status == 200


def test_commands_reach_a_server_that_lists_other_names(run, capsys):
    server = run("--allowed-hosts", "iris.example", "--role", "prediction_cache")
    for command in ("healthcheck", "clear"):
        assert main([command, "--port", str(server.port)]) == 0, capsys.readouterr()
