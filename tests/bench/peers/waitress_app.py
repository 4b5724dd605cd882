"""Our application on stock waitress, with four threads and enough connections for this benchmark."""

import os
import sys

import waitress

import iris_wsgi

if __name__ == "__main__":
    waitress.serve(
        iris_wsgi.create_app(role="web_single", model_dir=os.environ["BENCH_MODEL"]),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        threads=4,
        # With the defaults, 100 connections and select(), most of 256 connections get no response.
        connection_limit=5000,
        asyncore_use_poll=True,
        max_request_body_size=1 << 20,
    )
