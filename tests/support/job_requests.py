"""Requests of jobs by an application without a server, and a worker that does them."""

import webtest
from http_clients import ROW

ROWS = {"data": [ROW, [6.7, 3.1, 4.7, 1.5], [7.2, 3.6, 6.1, 2.5]]}


def worker_of(app: webtest.TestApp):
    return next(one.run.__self__ for one in app.service.background.tasks if one.name == "worker")


def run_worker(app: webtest.TestApp) -> None:
    """What a worker does until nothing is left."""
    while worker_of(app).run_once("test"):
        pass


def submit_job(app: webtest.TestApp, rows=ROWS, **headers: str) -> str:
    """The path of a new job."""
    return app.post_json("/jobs", rows, headers=headers).headers["Location"]


def idempotency_key(value: str) -> dict[str, str]:
    return {"Idempotency-Key": value}
