"""Bearer tokens: admitted requests, the responses to others, and the replacement of tokens in a running server."""

import json
import os
import subprocess
import sys
from functools import partial

import pytest
from applications import RecordingLog, call_wsgi
from http_clients import LABEL_REQUEST, LIVEZ, METRICS, ROW, RawConnection, fetch, http_request, metric_sum, stderr_to, wait_until
from optional_programs import require_program
from project import MODEL
from worker_processes import events_containing, wait_for_two_workers

from iris_wsgi.cli.main import main
from iris_wsgi.settings import BadSetting, Settings
from iris_wsgi.wsgi.application import App
from iris_wsgi.wsgi.bearer_auth import MAX_FILE_BYTES, Tokens

OLD, NEW = "the-token-of-yesterday", "TOKEN.of~to+day/0123=="
BODY = {"data": [ROW]}


def request_with_token(token: str, method: str = "POST", path: str = "/predict/label", document=BODY) -> bytes:
    return http_request(method, path, document, f"Authorization: Bearer {token}")


def status(server, token: str) -> int:
    return fetch(server, request_with_token(token)).status


class Mount:
    """Folder with the file `tokens`, which changes like the volume of a Secret: a link to a new folder replaces the old link."""

    def __init__(self, folder, *tokens: str) -> None:
        self.folder, self.count = folder, 0
        folder.mkdir()
        (folder / "tokens").symlink_to("..data/tokens")
        self.put(*tokens)

    @property
    def file(self) -> str:
        return str(self.folder / "tokens")

    def put(self, *tokens: str) -> None:
        self.count += 1
        new = self.folder / f"..{self.count}"
        new.mkdir()
        (new / "tokens").write_text("\n".join(tokens))
        (self.folder / "..new").symlink_to(new.name)
        os.replace(self.folder / "..new", self.folder / "..data")


@pytest.fixture
def mount(tmp_path):
    return Mount(tmp_path / "secret", OLD)


@pytest.fixture
def tokens(mount):
    """Tokens, together with the messages about them."""
    messages: list[tuple[str, str]] = []
    found = Tokens(mount.file, lambda level, message: messages.append((level, message)))
    found.said = messages
    return found


# Tokens and authorized requests


@pytest.mark.parametrize("header_sent", [f"Bearer {OLD}", f"bearer {OLD}", f"BEARER {OLD}", f"bEaReR   {OLD}"])
def test_the_name_of_the_scheme_is_case_insensitive(tokens, header_sent):
    assert tokens.check(header_sent) is None


@pytest.mark.parametrize(
    "header_sent", ["", "Bearer", "Bearer ", OLD, f"Basic {OLD}", f"Bearer\t{OLD}", f"Bearer:{OLD}", f"Token {OLD}"]
)
def test_a_request_without_a_token_gets_the_challenge(tokens, header_sent):
    assert dict(tokens.check(header_sent).headers) == {"WWW-Authenticate": 'Bearer realm="iris_wsgi"'}
    assert "curl -H 'Authorization: Bearer TOKEN'" in tokens.check(header_sent).detail


@pytest.mark.parametrize(
    "header_sent",
    [
        OLD[:-1],
        OLD + "x",
        OLD.upper(),
        f"{OLD} {OLD}",
        f"{OLD},{OLD}",
        f"{OLD}, Bearer {OLD}",
        f'"{OLD}"',
        OLD + "\xa0",
        "\xe9" * 16,
        "\x00" * 16,
        "\ud800",
        OLD + "\n",
        "A" * 15000,
        "=" * 16,
        "*",
        ".*",
        "\u212a",
        f"token={OLD}",
        NEW,
    ],
)
def test_a_token_that_is_not_in_the_file_is_reported_as_invalid(tokens, header_sent):
    refused = tokens.check(f"Bearer {header_sent}")
    assert dict(refused.headers) == {"WWW-Authenticate": 'Bearer realm="iris_wsgi", error="invalid_token"'}
    assert header_sent not in refused.detail


@pytest.mark.parametrize("content", [f"{OLD}\n{NEW}\n", f"\n  {NEW}\t\r\n\n{OLD}", f"{NEW}\r\n{OLD}\r\n", f"{OLD}\n{OLD}\n{NEW}"])
def test_each_line_of_the_file_is_a_valid_token_and_the_first_is_sent(tmp_path, content):
    (tmp_path / "tokens").write_text(content)
    found = Tokens(str(tmp_path / "tokens"), print)
    assert found.check(f"Bearer {OLD}") is found.check(f"Bearer {NEW}") is None
    assert found.headers() == (("Authorization", f"Bearer {content.split()[0]}"),)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "is empty"),
        (" \n\r\n", "is empty"),
        ("short-secret", "line 1"),
        (f"{OLD}\nsecret with-a-blank", "line 2"),
        (f"{OLD}\n\nsecret,with-a-comma", "line 3"),
        ("\ufeff" + OLD, "line 1"),
        ("sécret-of-other-letters", "line 1"),
        ("=" * 16, "line 1"),
        ("secret" * 100, "line 1"),
        ("secret=of-the-middle", "line 1"),
        ("secret\x00with-a-zero", "line 1"),
        (f"{OLD}\n" * (MAX_FILE_BYTES // len(OLD)), "more than"),
    ],
)
def test_any_other_content_of_the_file_stops_the_start_and_is_not_shown(tmp_path, make_app, content, why):
    (tmp_path / "tokens").write_text(content)
    with pytest.raises(BadSetting, match=why) as caught:
        make_app(role="web_single", token_file=str(tmp_path / "tokens"))
    assert "IRIS_TOKEN_FILE" in str(caught.value) and "\n" not in str(caught.value)
    assert "ecret" not in str(caught.value) and OLD not in str(caught.value)


def test_a_token_in_place_of_its_file_name_is_not_shown():
    with pytest.raises(BadSetting) as caught:
        Tokens(OLD, print)
    assert str(caught.value) == "IRIS_TOKEN_FILE is not a file"


def test_a_pipe_or_another_file_that_is_not_regular_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "nothing", "/dev/null", "/dev/zero"):
        with pytest.raises(BadSetting, match="is not a file"):
            Tokens(str(path), print)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_without_its_tokens_does_not_start_and_states_the_reason_in_one_line(tmp_path, workers):
    command = [sys.executable, "-m", "iris_wsgi", "serve", "--port", "0", "--workers", workers, "--role", "web_single"]
    command += ["--model-dir", str(MODEL), "--token-file", str(tmp_path / "nothing")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (1, "")
    assert "IRIS_TOKEN_FILE is not a file" in result.stderr and result.stderr.count("\n") == 1


def test_without_the_setting_no_token_is_required(make_app):
    app = make_app(role="web_single")
    assert type(app.service.app) is App
    assert "securitySchemes" not in app.get("/openapi.json").json["components"]


# Replaced tokens


def test_a_link_to_another_folder_brings_other_tokens(tokens, mount):
    mount.put(NEW, OLD)
    tokens.reload()
    assert tokens.check(f"Bearer {OLD}") is tokens.check(f"Bearer {NEW}") is None
    mount.put(NEW)
    tokens.reload()
    assert tokens.check(f"Bearer {OLD}") and not tokens.check(f"Bearer {NEW}")
    tokens.reload()
    assert [level for level, _ in tokens.said] == ["info", "info"]


@pytest.mark.parametrize("content", [b"", b"short", b"\xff\xfe", None])
def test_no_change_of_the_file_disables_the_check_and_a_change_is_reported_once(tokens, mount, tmp_path, content):
    file = tmp_path / "secret/..1/tokens"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    for _ in range(3):
        tokens.reload()
        assert not tokens.check(f"Bearer {OLD}")
        assert all(tokens.check(header_sent) for header_sent in ("", "Bearer ", "Bearer short", f"Bearer {NEW}"))
    ((level, message),) = tokens.said
    assert level == "error" and message.endswith("the previous tokens stay valid")
    mount.put(NEW)
    tokens.reload()
    assert tokens.check(f"Bearer {OLD}") and not tokens.check(f"Bearer {NEW}")


@pytest.mark.long
def test_two_workers_load_new_tokens_while_they_serve(run, mount, tmp_path):
    log = tmp_path / "log"
    server = run("--workers", "2", "--token-file", mount.file, under=stderr_to(log))
    wait_for_two_workers(server)
    with RawConnection(server) as persistent:
        assert persistent.exchange(request_with_token(OLD)).json() == {"prediction": "setosa"}
        assert persistent.exchange(request_with_token(NEW)).status == 401
        mount.put(OLD, NEW)
        wait_until(lambda: len(events_containing(log, "has changed")) == 2, "both workers have read the file")
        assert persistent.exchange(request_with_token(NEW)).status == persistent.exchange(request_with_token(OLD)).status == 200
        mount.put(NEW)
        wait_until(lambda: len(events_containing(log, "has changed")) == 4, "both workers have read the file")
        assert (persistent.exchange(request_with_token(OLD)).status, persistent.exchange(request_with_token(NEW)).status) == (
            401,
            200,
        )
    assert {status(server, OLD) for _ in range(20)} == {401}
    (tmp_path / "secret/..3/tokens").write_text("")
    wait_until(lambda: len(events_containing(log, "stay valid")) == 2, "both workers have noticed the empty file")
    assert {status(server, NEW) for _ in range(20)} == {200}
    assert fetch(server, LABEL_REQUEST).status == 401
    figures = fetch(server, METRICS).body.decode()
    assert metric_sum(figures, "http_requests_total", status="401") >= 22
    server.stop()
    for secret in (OLD, NEW):
        assert secret not in log.read_text() and secret not in figures


def test_a_request_without_a_token_uses_no_thread(make_app, mount):
    app = make_app(role="web_single", token_file=mount.file).service.app
    large = ("POST", "/predict/batch", 10**6)
    assert app.inline(*large[:2], {}, large[2])
    assert not app.inline(*large[:2], {"HTTP_AUTHORIZATION": f"Bearer {OLD}"}, large[2])


# Requests over a socket


@pytest.fixture(scope="module")
def server_with_tokens(tmp_path_factory):
    """Server for tests that only send requests."""
    from server_process import start_server

    file = tmp_path_factory.mktemp("tokens") / "tokens"
    file.write_text(OLD)
    server = start_server("--token-file", str(file), "--cache", "on")
    server.file = file
    yield server
    server.stop()


def test_a_refusal_of_a_complete_request_keeps_the_connection_open(server_with_tokens):
    many = http_request("POST", "/predict/batch", {"data": [ROW] * 200})
    with RawConnection(server_with_tokens) as connection:
        connection.send(
            LABEL_REQUEST + request_with_token(OLD) + request_with_token(NEW) + LIVEZ + many + request_with_token(OLD)
        )
        responses = [connection.receive() for _ in range(6)]
    assert [response.status for response in responses] == [401, 200, 401, 200, 401, 200]
    assert not any(response.closes for response in responses)


@pytest.mark.parametrize("framing", ["Content-Length: 900000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("expects", [(), ("Expect: 100-continue",)])
@pytest.mark.parametrize(
    ("path", "media"), [("/predict", "application/problem+json"), ("/v2/models/iris_svc/infer", "application/json")]
)
def test_an_unauthorized_body_is_not_requested_and_not_waited_for(server_with_tokens, framing, expects, path, media):
    with RawConnection(server_with_tokens) as connection:
        response = connection.exchange(http_request("POST", path, None, framing, *expects))
        assert (response.status, response.headers["content-type"], response.closes) == (401, media, True)
        assert response.headers["www-authenticate"] == 'Bearer realm="iris_wsgi"'
        # The server reads the body that the client sends anyway, so that the response is not lost.
        connection.send(b"x" * 100_000)
        connection.socket.shutdown(1)
        assert connection.read_to_end() == ("closed", b"")


def test_with_a_token_the_body_is_requested(server_with_tokens):
    document = json.dumps(BODY).encode()
    fields = (f"Authorization: Bearer {OLD}", "Expect: 100-continue", f"Content-Length: {len(document)}")
    with RawConnection(server_with_tokens) as connection:
        assert connection.exchange(http_request("POST", "/predict/label", None, *fields)).status == 100
        assert connection.exchange(document).status == 200


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ([b"Authorization: Bearer " + OLD.encode()], 200),
        ([b"authorization:\tbEARER  " + OLD.encode() + b" \t"], 200),
        ([b"Authorization: Bearer " + OLD.encode()] * 2, 401),
        ([b"Authorization: Basic eDp5", b"Authorization: Bearer " + OLD.encode()], 401),
        ([b"Proxy-Authorization: Bearer " + OLD.encode()], 401),
        ([b"Authorization_: Bearer " + OLD.encode()], 401),
        ([b"Authorization: Bearer " + OLD.encode() + b"\xff\xfe"], 401),
        ([b"Authorization: Bearer " + bytes(range(0x80, 0x100))], 401),
        ([b"Authorization: Bearer " + b"A" * 15_000], 401),
        ([b"Authorization: Bearer " + b"A" * 17_000], 431),
        ([b"Authorization: Bearer \x00" + OLD.encode()], 400),
        ([b"Authorization: Bearer\r\n " + OLD.encode()], 400),
        ([b"Authorization : Bearer " + OLD.encode()], 400),
    ],
    ids=range(13),
)
def test_header_values_of_any_bytes_are_refused_or_correct(server_with_tokens, fields, found):
    response = fetch(server_with_tokens, b"GET /label HTTP/1.1\r\nHost: localhost\r\n" + b"\r\n".join(fields) + b"\r\n\r\n")
    assert response.status == found and OLD.encode() not in response.body


def test_a_browser_is_shown_how_to_send_a_token(server_with_tokens):
    page = fetch(server_with_tokens, http_request("GET", "/", None, "Accept: text/html"))
    assert page.status == 200 and b'ask("openapi.json")' in page.body
    # The page shows the detail of this refusal.
    response = fetch(server_with_tokens, http_request("GET", "/openapi.json", None, "Accept: application/json"))
    assert response.status == 401 and "curl -H 'Authorization: Bearer TOKEN'" in response.json()["detail"]


def test_the_printed_example_of_a_start_works(server_with_tokens):
    line = server_with_tokens.startup_lines[-1].removeprefix("try: ")
    assert OLD not in line
    result = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=120)
    assert json.loads(result.stdout) == {"prediction": "setosa"}


# Clients with tokens


def test_commands_send_the_token_and_the_health_check_needs_none(server_with_tokens, monkeypatch, capsys):
    where = ["--host", server_with_tokens.host, "--port", str(server_with_tokens.port)]
    assert main(["healthcheck", *where]) == 0
    assert main(["clear", *where]) == 1
    assert "401 Unauthorized" in capsys.readouterr().err
    assert main(["clear", *where, "--token-file", str(server_with_tokens.file)]) == 0
    monkeypatch.setenv("IRIS_TOKEN_FILE", str(server_with_tokens.file))
    assert main(["clear", *where]) == 0
    assert main(["warm", "0000", "0001", "--quiet", *where]) == 0
    monkeypatch.setenv("IRIS_TOKEN_FILE", str(server_with_tokens.file) + ".not")
    assert main(["clear", *where]) == 1
    assert "IRIS_TOKEN_FILE is not a file" in capsys.readouterr().err


@pytest.mark.long
def test_prep_and_pred_change_to_another_token_while_they_serve(run, tmp_path):
    mounts = {name: Mount(tmp_path / name, OLD) for name in ("prep", "pred")}
    logs = {name: tmp_path / f"{name}.log" for name in mounts}
    pred = run("--role", "pred", "--token-file", mounts["pred"].file, under=stderr_to(logs["pred"]))
    prep = run("--role", "prep", "--pred-url", pred.url, "--token-file", mounts["prep"].file, under=stderr_to(logs["prep"]))
    ready = http_request("GET", "/readyz")
    wait_until(lambda: fetch(prep, ready).status == 200, "prep knows pred")

    def read(times: int) -> bool:
        return all(len(events_containing(log, "has changed")) == times for log in logs.values())

    # The new token is added, then it becomes the first one, and then the old one is removed.
    for turn, step in enumerate(([OLD, NEW], [NEW, OLD], [NEW]), 1):
        for mount in mounts.values():
            mount.put(*step)
        wait_until(partial(read, turn), "both servers have read the file")
        assert status(prep, step[0]) == 200 and fetch(prep, ready).status == 200
    assert status(prep, OLD) == fetch(prep, LABEL_REQUEST).status == fetch(pred, http_request("GET", "/v2")).status == 401
    # A server that requires another token is not trusted.
    mounts["prep"].put(OLD, NEW)
    wait_until(lambda: fetch(prep, ready).status == 503, "pred refuses prep")
    assert "it answers 401" in fetch(prep, ready).json()["detail"]
    assert status(prep, NEW) in (502, 503)
    mounts["prep"].put(NEW)
    wait_until(lambda: fetch(prep, ready).status == 200, "pred accepts prep again")
    assert status(prep, NEW) == 200
    for log in logs.values():
        assert OLD not in log.read_text() and NEW not in log.read_text()


@pytest.mark.long
def test_a_gateway_sends_its_own_token_to_members_and_not_the_clients_token(run, tmp_path):
    file, clients = tmp_path / "inside", tmp_path / "outside"
    file.write_text(OLD)
    # The first token is for the members, and the second one for clients. The members do not know the first clients' token.
    clients.write_text(f"{OLD}\n{NEW}")
    names = ("setosa", "versicolor", "virginica")
    members = {name: run("--role", "member", "--member", name, "--token-file", str(file)) for name in names}
    registry = ",".join(f"{name}={server.url}" for name, server in members.items())
    gateway = run("--role", "gateway", "--members", registry, "--token-file", str(clients))
    healthy = http_request("GET", "/ensemble/health", None, f"Authorization: Bearer {NEW}")
    wait_until(lambda: fetch(gateway, healthy).json()["status"] == "complete", "the gateway knows all members")
    response = fetch(gateway, request_with_token(NEW, path="/ensemble/predict"))
    assert response.status == 200 and response.json()["status"] == "complete"
    assert fetch(gateway, http_request("POST", "/ensemble/predict", BODY)).status == 401
    assert fetch(members["setosa"], request_with_token(NEW, "GET", "/v2", None)).status == 401


def test_the_printed_example_has_the_token_whatever_the_name_of_the_file_is(run, tmp_path):
    require_program("curl")
    file = tmp_path / "it's a \\file"
    file.write_text(OLD)
    server = run("--role", "web_single", "--token-file", str(file))
    line = server.startup_lines[-1].removeprefix("try: ")
    assert OLD not in line
    result = subprocess.run(line, shell=True, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == {"prediction": "setosa"}


def test_tokens_are_in_no_text_about_the_server(tmp_path, make_app, log):
    (tmp_path / "tokens").write_text(OLD)
    settings = Settings(role="web_single", model_dir=str(MODEL), token_file=str(tmp_path / "tokens"))
    app = make_app(role="web_single", token_file=settings.token_file)
    found = Tokens(settings.token_file, RecordingLog().event)
    all_texts = [
        call_wsgi(app.service.app, "GET", path, HTTP_AUTHORIZATION=f"Bearer {OLD}") for path in ("/label", "/nowhere", "/metrics")
    ]
    texts = [repr(settings), repr(found), repr(app.service), *log.raw_lines, *(repr(item) for item in all_texts)]
    assert not any(OLD in text for text in texts)
