"""Script: the command line of iris_wsgi with a model that certain rows crash or block."""

import os
import signal
import sys
import time

from iris_wsgi.cli import main
from iris_wsgi.server import serve

# First values of the rows that kill the process with SIGKILL, abort it, or block the prediction.
KILLS, ABORTS, BLOCKS = 1000.0, 2000.0, 3000.0
# Rows that block wait as long as this file exists. A prediction that waits creates the file with the suffix .waiting.
BLOCK_FILE = os.environ.get("TEST_BLOCK_FILE", "")


def patch_predict() -> None:
    from iris_wsgi.model.session import Model

    predict = Model.predict

    def predict_or_crash(self, rows, *options):
        first_values = set(rows[:, 0].tolist())
        if KILLS in first_values:
            os.kill(os.getpid(), signal.SIGKILL)
        if ABORTS in first_values:
            os.abort()
        if BLOCKS in first_values and BLOCK_FILE:
            with open(f"{BLOCK_FILE}.waiting", "w"):
                pass
            while os.path.exists(BLOCK_FILE):
                time.sleep(0.005)
        return predict(self, rows, *options)

    Model.predict = predict_or_crash
    if os.environ.get("TEST_KILL_WORKER"):
        from iris_wsgi.patterns.asynchronous.worker import JobWorker

        JobWorker.run = lambda _: os.kill(os.getpid(), signal.SIGKILL)


serve_here = serve.serve_here


def serve_here_with_crashes(*arguments, **options):
    # Only the process that serves loads the model's library. The parent of several workers does not.
    patch_predict()
    return serve_here(*arguments, **options)


if __name__ == "__main__":
    serve.serve_here = serve_here_with_crashes
    sys.exit(main.main())
