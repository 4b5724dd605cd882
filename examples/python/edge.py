"""Edge AI: downloads the bundle of the server to a device, and predicts there without the server.

Usage: edge.py [URL]
"""

import os
import sys
import tempfile
from pathlib import Path

from iris_wsgi.errors import BadModel
from iris_wsgi.patterns.edge.device_store import DeviceStore
from iris_wsgi.patterns.edge.stream import predict_row
from iris_wsgi.patterns.edge.update import update

URL = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("SERVER_URL", "http://127.0.0.1:8000")


def main() -> None:
    # A real device keeps this folder. A later update replaces the bundle, and the device can roll back to the one before.
    with tempfile.TemporaryDirectory() as folder:
        device = DeviceStore(Path(folder))
        print(update(device, f"{URL}/edge"))
        bundle = device.current()
        assert bundle is not None
        model, _ = bundle.load()
        # From here on, nothing needs the network.
        label, probabilities = predict_row(model, ["5.1", "3.5", "1.4", "0.2"])
    print(f"{label}, with probability {max(probabilities):.4f}")
    if label != "setosa":
        sys.exit(f"expected setosa, not {label}")


if __name__ == "__main__":
    try:
        main()
    except BadModel as error:
        sys.exit(f"{error}; a server has a bundle after bin/edge build and a restart of bin/serve")
