"""Prints the seconds and the MB of memory that numpy, onnxruntime, and the session of a model take without a server."""

import subprocess
import sys
from pathlib import Path
from statistics import median

STEPS = {
    "Python": "",
    "numpy": "import numpy",
    "numpy, onnxruntime": "import numpy, onnxruntime",
    "numpy, onnxruntime, a session": "import numpy, onnxruntime; s = onnxruntime.InferenceSession(sys.argv[1]); "
    "s.run(None, {s.get_inputs()[0].name: numpy.ones((1, 4), numpy.float32)})",
}
# The proportional set size counts memory of several processes once, as the benchmark of servers does.
REPORT = "; print(time.perf_counter() - began, *[x.split()[1] for x in open('/proc/self/smaps_rollup') if x[:4] == 'Pss:'])"
ROUNDS = 9


def measure(step: str, model: str) -> tuple[float, float]:
    """Returns the seconds and the MB of a new process."""
    command = f"import sys, time; began = time.perf_counter(); {step or 'pass'}{REPORT}"
    words = subprocess.run([sys.executable, "-c", command, model], capture_output=True, text=True, check=True).stdout.split()
    return float(words[0]), int(words[1]) / 1024


def main(folder: str) -> None:
    (model,) = Path(folder).glob("*.onnx")
    for name, step in STEPS.items():
        found = [measure(step, str(model)) for _ in range(ROUNDS)]
        seconds, memory = (median(values) for values in zip(*found, strict=True))
        print(f"{name}: {seconds:.3f} s, {memory:.0f} MB")


if __name__ == "__main__":
    main(sys.argv[1])
