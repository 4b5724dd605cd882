"""mosec: an HTTP server in Rust, and one worker process in Python."""

import os

from classifier import Classifier
from mosec import Server, Worker


class Iris(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = Classifier()

    def forward(self, data):
        if isinstance(data, list):
            return [self.classifier.answer(one["data"]) for one in data]
        return self.classifier.answer(data["data"])


if __name__ == "__main__":
    server = Server()
    # BENCH_BATCH over 1 enables mosec's dynamic batching. forward() then gets and returns lists.
    server.append_worker(Iris, num=1, max_batch_size=int(os.environ.get("BENCH_BATCH", "1")), max_wait_time=1)
    server.run()
