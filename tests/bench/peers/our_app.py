"""Our application for other WSGI servers. Alone it runs on bjoern: PORT."""

import os
import sys

import iris_wsgi


def make_app() -> object:
    return iris_wsgi.create_app(role="web_single", model_dir=os.environ["BENCH_MODEL"])


if __name__ == "__main__":
    import bjoern

    bjoern.run(make_app(), "127.0.0.1", int(sys.argv[1]))
