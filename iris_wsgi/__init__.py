"""An ONNX classifier in ten serving patterns, over a WSGI application on the standard library.

Read first: `wsgi/application.py` (requests and responses), `roles.py` and `factory.py` (roles), and `model/session.py` (model).
"""

import sys
from typing import TYPE_CHECKING, Any

# An older Python can parse this file, and no other one.
if sys.hexversion < 0x030B0000:
    sys.exit(f"iris_wsgi: this is Python {sys.version.split()[0]}, and 3.11 or later is needed; bin/setup looks for one")

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from iris_wsgi.packing.packer import PackReport
    from iris_wsgi.wsgi.application import App

__version__ = "0.1.0"


# gunicorn stops if a worker ends with this status, instead of starting another worker.
CANNOT_LOAD = 4
FORKED = (
    "This process was forked after the application was loaded, so its threads are missing. Load it in each worker: "
    "under gunicorn without --preload, under uWSGI with --lazy-apps and --enable-threads."
)


def create_app(**settings: Any) -> "App":
    """Returns the application for any WSGI server, such as `gunicorn 'iris_wsgi:create_app(role="web_single")'`.

    The settings are those of `settings.Settings`. Arguments take precedence over the environment (IRIS_ROLE, …). The log goes to
    standard error. Raises SystemExit after one line on standard error if the application cannot start. Call this function in
    the process that serves, and not before a fork, because roles have threads.
    """
    import os

    from iris_wsgi.console import report_failure
    from iris_wsgi.errors import BackendUnavailable, BadModel, BadStore, Problem, ServiceUnavailable
    from iris_wsgi.factory import build
    from iris_wsgi.observability.log import Log
    from iris_wsgi.settings import BadSetting, application_settings
    from iris_wsgi.wsgi.browser_security import AllowedHosts

    log, loaded_in = Log(sys.stderr.fileno()), os.getpid()
    try:
        chosen, ignored = application_settings(os.environ, settings)
        hosts = AllowedHosts(chosen.allowed_hosts, None)

        def check_host(environ: dict[str, Any]) -> Problem | None:
            forked = os.getpid() != loaded_in and service.background.tasks
            return ServiceUnavailable(FORKED) if forked else hosts.check(environ)

        service = build(chosen, log, check_host=check_host)
    except (BadModel, BadSetting, BadStore, BackendUnavailable) as error:
        raise SystemExit(report_failure(str(error), CANNOT_LOAD)) from error
    if ignored:
        log.event(
            "warning", f"settings without effect under another WSGI server, which has its own options: {', '.join(ignored)}"
        )
    if not forks_later():
        service.background.start()
    return service.app


def pack(
    estimator: Any,
    rows: Any,
    folder: "str | Path",
    *,
    expected: Any = None,
    label: str | None = None,
    labels: Any = None,
    targets: "Sequence[str]" = (),
    name: str = "",
    version: str = "",
) -> "PackReport":
    """Writes the folder of a model that the server can serve. Returns the report, whose `str()` has its lines.

    `estimator` is a fitted estimator of scikit-learn, LightGBM, XGBoost, or CatBoost, or an ONNX model: its bytes, its
    ModelProto, or the path of an .onnx file. `rows` are a DataFrame, an array [rows, features], a list of rows, or the path of a
    CSV. The results for all rows are compared: with those of the estimator, or for an ONNX model with `expected`. This is a
    list of labels, an array of probabilities or values, or a mapping with "labels" and "probabilities", "scores", or "values".

    `label` is "argmax" or "graph": the label to serve where an ONNX model gives two different ones. `labels` are the names of
    the classes, as a list in their order or as a mapping. `targets` are the names of the values of a regressor. Raises BadModel
    of `iris_wsgi.errors` if a result differs, or if the model cannot be served.
    """
    from iris_wsgi.packing.packer import pack_model
    from iris_wsgi.packing.proof import PackOptions

    return pack_model(estimator, rows, folder, PackOptions(expected, label, labels, tuple(targets), name, version))


def forks_later() -> bool:
    """Returns whether uWSGI loads the application in the process from which it forks its workers.

    uWSGI forks without Python's knowledge, so a lock of a running thread would stay locked in every worker.
    """
    uwsgi: Any = sys.modules.get("uwsgi")
    return uwsgi is not None and uwsgi.worker_id() == 0 and (uwsgi.masterpid() > 0 or uwsgi.numproc > 1)
