"""A classifier in ONNX, served over a hand-rolled WSGI application.

Read first: `wsgi.py` (requests in, responses out), `catalogue.py` and `roles.py` (what is served), `model.py` (what answers).
"""

import sys
from typing import TYPE_CHECKING, Any

# All that an older one can read of this package.
if sys.hexversion < 0x030B0000:
    sys.exit(f"iris_wsgi: this is Python {sys.version.split()[0]}, and 3.11 or later is needed; bin/setup looks for one")

if TYPE_CHECKING:
    from iris_wsgi.wsgi import App

__version__ = "0.1.0"


def create_app(**settings: Any) -> "App":
    """The application as a WSGI callable for any WSGI server, e.g. `gunicorn 'iris_wsgi:create_app(role="web_single")'`.

    Settings are those of `settings.Settings`; the environment is not read. Requests are logged to standard error.
    To be called where nothing forks any more: role `all` has a thread that works on jobs.
    """
    from iris_wsgi.log import Log
    from iris_wsgi.roles import build
    from iris_wsgi.settings import Settings

    service = build(Settings(**settings), Log(sys.stderr.fileno()))
    service.companions.start()
    return service.app
