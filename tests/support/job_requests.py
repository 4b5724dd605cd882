"""Job requests to an application without a server, and the worker that executes the jobs."""

import webtest
from http_clients import ROW

ROWS = {"data": [ROW, [6.7, 3.1, 4.7, 1.5], [7.2, 3.6, 6.1, 2.5]]}


def worker_of(app: webtest.TestApp):
    return next(task.run.__self__ for task in app.service.background.tasks if task.name == "worker")


def run_worker(app: webtest.TestApp) -> None:
    """Executes jobs until the queue is empty."""
    while worker_of(app).run_once("test"):
        pass


def submit_job(app: webtest.TestApp, rows=ROWS, **headers: str) -> str:
    """Submits a job and returns its path."""
    return app.post_json("/jobs", rows, headers=headers).headers["Location"]


def idempotency_key(value: str) -> dict[str, str]:
    return {"Idempotency-Key": value}
