"""Entry point of `python -m iris_wsgi`."""

import sys

from iris_wsgi.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
