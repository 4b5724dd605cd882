"""LitServe: one API server process (FastAPI on uvicorn), and one worker process for the model."""

import os
import sys

import litserve
from classifier import Classifier


class Iris(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.classifier = Classifier()

    def decode_request(self, request: dict) -> list[list[float]]:
        return request["data"]

    def predict(self, rows: list[list[float]]) -> dict[str, object]:
        return self.classifier.answer(rows)

    def encode_response(self, output: dict[str, object]) -> dict[str, object]:
        return output


if __name__ == "__main__":
    fast = os.environ.get("BENCH_FAST_QUEUE") == "1"
    server = litserve.LitServer(Iris(), accelerator="cpu", devices=1, workers_per_device=1, fast_queue=fast)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        generate_client_file=False,
        access_log=False,
        log_level="warning",
    )
