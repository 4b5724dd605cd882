"""A classifier in ONNX, served over a hand-rolled WSGI application.

Read first: `wsgi.py` (requests in, responses out), `catalogue.py` and `roles.py` (what is served), `model.py` (what answers).
"""

import sys
from typing import TYPE_CHECKING, Any

# All that an older one can read of this package.
if sys.hexversion < 0x030B0000:
    sys.exit(f"iris_wsgi: this is Python {sys.version.split()[0]}, and 3.11 or later is needed; bin/setup looks for one")

if TYPE_CHECKING:
    from iris_wsgi.wsgi.application import App

__version__ = "0.1.0"


# gunicorn ends at this status of a worker, instead of starting the next one.
CANNOT_LOAD = 4


FORKED = (
    "This process was forked after its application was loaded, so its threads are missing. Load it in each worker: "
    "under gunicorn without --preload, under uWSGI with --lazy-apps and --enable-threads."
)


def create_app(**settings: Any) -> "App":
    """Returns the application as a WSGI callable for any WSGI server, e.g. `gunicorn 'iris_wsgi:create_app(role="web_single")'`.

    Settings are those of `settings.Settings`, from the environment (IRIS_ROLE, …) and from arguments, which win. Requests are
    logged to standard error. Raises SystemExit after one line on standard error if it cannot start. It must be called in the
    process that serves, not before a fork: role `all` has a thread that works on jobs.
    """
    import os

    from iris_wsgi.console import failure
    from iris_wsgi.errors import BackendUnavailable, BadModel, BadStore, Problem, ServiceUnavailable
    from iris_wsgi.factory import build
    from iris_wsgi.observability.log import Log
    from iris_wsgi.settings import BadSetting, application_settings
    from iris_wsgi.wsgi.allowed_hosts import AllowedHosts

    log, loaded_in = Log(sys.stderr.fileno()), os.getpid()
    try:
        chosen, ignored = application_settings(os.environ, settings)
        hosts = AllowedHosts(chosen.allowed_hosts, None)

        def check_host(environ: dict[str, Any]) -> Problem | None:
            forked = os.getpid() != loaded_in and service.background.tasks
            return ServiceUnavailable(FORKED) if forked else hosts.check(environ)

        service = build(chosen, log, check_host=check_host)
    except (BadModel, BadSetting, BadStore, BackendUnavailable) as error:
        raise SystemExit(failure(str(error), CANNOT_LOAD)) from error
    if ignored:
        log.event("warning", f"no effect under another WSGI server, which has its own options: {', '.join(ignored)}")
    if not forks_later():
        service.background.start()
    return service.app


def forks_later() -> bool:
    """Whether uWSGI loads the application in the process that it forks its workers from.

    It forks without telling Python, so a lock that a thread has at that moment stays locked in every worker.
    """
    uwsgi: Any = sys.modules.get("uwsgi")
    return uwsgi is not None and uwsgi.worker_id() == 0 and (uwsgi.masterpid() > 0 or uwsgi.numproc > 1)
