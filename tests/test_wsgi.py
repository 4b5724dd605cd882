"""The application as a WSGI callable: routing, failures, and other servers than ours."""

import http.client
import json
import threading
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.validate import validator

import pytest
import webtest
from conftest import MODEL

import iris_wsgi
from iris_wsgi.errors import Problem
from iris_wsgi.wsgi import App, Request, Response, Route


class Silent:
    def __init__(self):
        self.failures = []
        self.answers = []

    def started(self):
        pass

    def failed(self, ids):
        self.failures.append(ids.request)

    def answered(self, *told):
        self.answers.append(told)


def route(handler, method="GET", path="/x", **more):
    return Route(method, path, handler, "for a test", {}, **more)


def test_two_routes_for_one_method_and_path_are_refused_at_construction():
    same = [route(lambda _: Response(b"1")), route(lambda _: Response(b"2"))]
    with pytest.raises(ValueError, match="two routes answer GET /x"):
        App(same, Silent(), 100)


@pytest.mark.parametrize("error", [ValueError("secret"), RecursionError("secret"), MemoryError("secret"), KeyError("secret")])
def test_an_unexpected_exception_is_500_told_to_the_log_and_nothing_of_it_to_the_client(error):
    def handler(request: Request) -> Response:
        raise error

    observer = Silent()
    answer = webtest.TestApp(App([route(handler)], observer, 100)).get("/x", status=500, headers={"X-Request-ID": "it"})
    assert observer.failures == ["it"]
    assert "secret" not in answer.text and "Traceback" not in answer.text
    assert answer.json["request_id"] == "it"


def test_a_500_that_was_raised_as_such_is_logged_too():
    def handler(request: Request) -> Response:
        raise Problem("The model failed.")

    observer = Silent()
    answer = webtest.TestApp(App([route(handler)], observer, 100)).get("/x", status=500)
    assert answer.json["detail"] == "The model failed."
    assert len(observer.failures) == 1


def test_a_get_route_ignores_a_body_and_never_reads_it():
    class Untouched:
        def read(self, *_):
            raise AssertionError("the body was read")

    app = App([route(lambda request: Response(request.body or b"none"))], Silent(), 100)
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/x", "CONTENT_LENGTH": "5", "wsgi.input": Untouched()}
    assert app(environ, lambda *_: None) == [b"none"]


def test_the_application_keeps_to_the_specification_under_wsgiref_and_its_validator():
    class Quiet(WSGIRequestHandler):
        def log_message(self, *_):
            pass

    app = iris_wsgi.create_app(role="web_single", model_dir=str(MODEL))
    with make_server("127.0.0.1", 0, validator(app), handler_class=Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=120)
            body = json.dumps({"data": [[5.1, 3.5, 1.4, 0.2]]})
            asked = [("POST", "/predict/label", 200), ("POST", "/predict/batch", 200), ("GET", "/metadata", 200),
                     ("GET", "/metrics", 200), ("HEAD", "/label", 200), ("OPTIONS", "/label", 204), ("GET", "/no", 404),
                     ("PUT", "/predict", 405)]  # fmt: skip
            for method, path, status in asked:
                connection.request(method, path, body if method == "POST" else None, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                content = answer.read()
                assert answer.status == status, (method, path, content)
                if path == "/predict/label":
                    assert content == b'{"prediction":"setosa"}'
            connection.close()
        finally:
            server.shutdown()
            thread.join()


def test_the_application_is_a_waitress_application(tmp_path):
    from waitress.server import create_server

    server = create_server(
        iris_wsgi.create_app(model_dir=str(MODEL), state_dir=str(tmp_path)), host="127.0.0.1", port=0, threads=1
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", server.effective_port, timeout=120)
        connection.request("POST", "/predict/label", b'{"data": [[7.2, 3.6, 6.1, 2.5]]}', {"Transfer-Encoding": "identity"})
        assert connection.getresponse().status in (200, 501)
        connection.close()
        connection.request("POST", "/predict/label", iter([b'{"data": [[7.2, 3.6,', b" 6.1, 2.5]]}"]))
        assert connection.getresponse().read() == b'{"prediction":"virginica"}'
        connection.close()
    finally:
        server.task_dispatcher.shutdown(timeout=1)
        server.pull_trigger()
        server.asyncore.close_all(server._map)
        thread.join(120)
