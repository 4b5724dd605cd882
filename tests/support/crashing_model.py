"""The command line of iris_wsgi over a model that some rows do something to; a script."""

import os
import signal
import sys
import time

from iris_wsgi.cli import main
from iris_wsgi.server import serve

# What the first value of a row stands for.
KILLS, ABORTS, HOLDS = 1000.0, 2000.0, 3000.0
# Where this file is, the rows that hold wait until it is not; its companion is there while one waits.
HOLD = os.environ.get("DEADLY_HOLD", "")


def patch_predict() -> None:
    from iris_wsgi.model.session import Model

    predict = Model.predict

    def predict_or_die(self, rows, *options):
        told = set(rows[:, 0].tolist())
        if KILLS in told:
            os.kill(os.getpid(), signal.SIGKILL)
        if ABORTS in told:
            os.abort()
        if HOLDS in told and HOLD:
            with open(f"{HOLD}.held", "w"):
                pass
            while os.path.exists(HOLD):
                time.sleep(0.005)
        return predict(self, rows, *options)

    Model.predict = predict_or_die
    if os.environ.get("DEADLY_AT_ONCE"):
        from iris_wsgi.patterns.asynchronous.worker import JobWorker

        JobWorker.run = lambda _: os.kill(os.getpid(), signal.SIGKILL)


serve_here = serve.serve_here


def serve_here_with_crashes(*given, **named):
    # Only in the process that serves: the parent of several never has the model's library.
    patch_predict()
    return serve_here(*given, **named)


if __name__ == "__main__":
    serve.serve_here = serve_here_with_crashes
    sys.exit(main.main())
