"""The edge commands: the same predictions as the server, without a server, for single rows and streams."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from http_clients import NO_COVERAGE
from onnx import TensorProto, helper, numpy_helper
from project import MODEL, ROOT
from sealed_models import seal

from iris_wsgi.cli.main import main
from iris_wsgi.model.session import load_model
from iris_wsgi.patterns.edge.stream import predict_row

FIXED = {"setosa": "5.1 3.5 1.4 0.2", "versicolor": "6.7 3.1 4.7 1.5", "virginica": "7.2 3.6 6.1 2.5"}
HEADER = "sepal_length,sepal_width,petal_length,petal_width"
TRAINING = [line.split(",")[:4] for line in (MODEL / "training.csv").read_text().splitlines()[1:]]


@pytest.fixture
def edge(tmp_path, monkeypatch, capfd):
    """Runs an edge command in an empty folder. Returns its status, its output, and its standard error."""
    monkeypatch.setenv("IRIS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("IRIS_MODEL_DIR", str(MODEL))

    def run(*arguments: str) -> tuple[int, str, str]:
        return main(["edge", *arguments]), *capfd.readouterr()

    return run


def piped(tmp_path: Path, *arguments: str, **options) -> subprocess.Popen:
    """Runs a stream in a separate process."""
    command = [sys.executable, "-m", "iris_wsgi", "edge", "stream", "--model-dir", str(MODEL), *arguments]
    environment = os.environ | {"IRIS_STATE_DIR": str(tmp_path / "state")}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, **options
    )


def streamed(tmp_path: Path, text: str | bytes, *arguments: str) -> tuple[int, list[str], list[str]]:
    process = piped(tmp_path, *arguments)
    output, error_output = process.communicate(text.encode() if isinstance(text, str) else text, timeout=60)
    return process.returncode, output.decode().splitlines(), error_output.decode().splitlines()


# Single rows


@pytest.mark.parametrize("label", FIXED)
def test_a_row_gets_its_label_and_the_probabilities_of_all_classes(edge, label):
    status, output, _ = edge("predict", *FIXED[label].split())
    first, *other_lines = output.splitlines()
    assert (status, first) == (0, label)
    result = {name: float(probability) for name, probability in map(str.split, other_lines)}
    assert list(result) == ["setosa", "versicolor", "virginica"] and max(result, key=result.get) == label
    assert abs(sum(result.values()) - 1) < 1e-6


def test_as_json_it_is_one_line_that_names_the_model(edge):
    status, output, _ = edge("predict", "--json", *FIXED["setosa"].split())
    document = json.loads(output)
    assert (status, output.count("\n"), document["label"]) == (0, 1, "setosa")
    assert document["model"]["digest"] == load_model(MODEL)[0].digest
    assert document["classes"] == ["setosa", "versicolor", "virginica"] and len(document["probabilities"]) == 3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ("5.1 3.5 1.4", "3 numbers are given, and the model takes 4: sepal_length, sepal_width, petal_length, petal_width"),
        ("5.1 3.5 1.4 0.2 1", "5 numbers are given, and the model takes 4"),
        ("5.1 3.5 x 0.2", "petal_length is not a number"),
        ("5.1 3.5 1.4 1e39", "petal_width is not finite as a 32-bit float"),
        ("5.1 3.5 1.4 nan", "petal_width is not finite as a 32-bit float"),
        ("5.1 3.5 1.4 1_0", "petal_width is not a number"),
    ],
)
def test_an_invalid_row_is_reported_in_one_line(edge, values, words):
    status, output, error_output = edge("predict", *values.split())
    assert (status, output) == (2, "")
    assert error_output.startswith(f"iris_wsgi: {words}") and error_output.count("\n") == 1


def test_negative_numbers_are_not_options(edge):
    assert edge("predict", "-5.1", "-3.5", "-1.4", "-0.2")[:2] == edge("predict", "--", "-5.1", "-3.5", "-1.4e0", "-0.2")[:2]


def test_a_missing_model_is_reported_in_one_line(edge, tmp_path):
    status, _, error_output = edge("predict", "--model-dir", str(tmp_path), *FIXED["setosa"].split())
    assert status == 1 and "golden.json cannot be read" in error_output and error_output.count("\n") == 1


def looked_up(*values: float) -> bytes:
    """Writes a model of four numbers, each of which is the index of its result in these values."""
    nodes = [
        helper.make_node("Cast", ["rows"], ["places"], to=TensorProto.INT64),
        helper.make_node("Gather", ["values", "places"], ["probabilities"]),
    ]
    input_info, output_info = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 4]) for name in ("rows", "probabilities")
    )
    constant = numpy_helper.from_array(np.array(values, np.float32), "values")
    graph = helper.make_graph(nodes, "looked_up", [input_info], [output_info], [constant])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString()


def test_a_row_on_which_the_model_fails_is_reported_in_one_line(edge, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "looked_up.onnx").write_bytes(looked_up(0.25, 0.5, np.nan))
    (folder / "label.json").write_text('{"0": "a", "1": "b", "2": "c", "3": "d"}')
    seal(folder, [[0, 0, 0, 0], [0, 1, 0, 0]])
    where = ("--model-dir", str(folder))
    assert edge("predict", *where, "0", "0", "1", "0")[:2] == (0, "c\na 0.25\nb 0.25\nc 0.5\nd 0.25\n")
    for row, words in (("0 0 2 0", "is not a finite number for these rows."), ("0 0 9 0", "the model fails on this row: ")):
        status, output, error_output = edge("predict", *where, *row.split())
        assert (status, output, error_output.count("\n")) == (1, "", 1) and words in error_output


def test_neither_a_row_nor_a_stream_nor_an_update_loads_a_server():
    code = """
import sys
from iris_wsgi.patterns.edge import bundle, command, device_store, stream, update
print(*sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"onnxruntime", "numpy", "iris_wsgi.model.session"} <= set(result)
    assert not {
        "waitress",
        "iris_wsgi.server.event_loop",
        "iris_wsgi.wsgi.application",
        "iris_wsgi.server.serve",
        "socketserver",
    } & set(result)


def test_the_command_itself_loads_no_server():
    code = f"""
import sys
from iris_wsgi.cli.main import main
status = main(["edge", "predict", "--model-dir", {str(MODEL)!r}, "5.1", "3.5", "1.4", "0.2"])
print(status, *sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert result[0] == "setosa" and "onnxruntime" in result
    assert not {
        "waitress",
        "iris_wsgi.server.event_loop",
        "iris_wsgi.wsgi.application",
        "iris_wsgi.server.serve",
        "socketserver",
    } & set(result)


# The same predictions


def test_a_device_predicts_the_150_rows_like_the_server_to_the_bit(live_server, tmp_path):
    rows = [[float(value) for value in row] for row in TRAINING]
    request = urllib.request.Request(
        f"{live_server.url}/predict/batch", json.dumps({"data": rows}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        server = json.load(response)
    assert len(server["labels"]) == len(TRAINING) == 150
    model, _ = load_model(MODEL)
    assert [predict_row(model, row) for row in TRAINING] == list(zip(server["labels"], server["probabilities"], strict=True))
    status, output, _ = streamed(tmp_path, "".join(f"{','.join(row)}\n" for row in TRAINING))
    labels, *columns = zip(*(line.split(",") for line in output[1:]), strict=True)
    assert status == 0 and list(labels) == server["labels"]
    # Nine digits represent every float32 exactly.
    assert (np.array(columns, np.float64).T.astype(np.float32) == np.array(server["probabilities"], np.float32)).all()


# Streams


def test_each_line_gets_its_result_before_the_next_one_comes(tmp_path):
    with piped(tmp_path) as process:

        def send_line(line: str) -> None:
            process.stdin.write(f"{line}\n".encode())
            process.stdin.flush()

        send_line(HEADER)
        assert process.stdout.readline() == b"label,probability_setosa,probability_versicolor,probability_virginica\n"
        for label, row in FIXED.items():
            send_line(row.replace(" ", ","))
            assert process.stdout.readline().decode().split(",")[0] == label
        send_line("5.1,3.5,x,0.2")
        assert process.stderr.readline() == b"iris_wsgi: line 5: column petal_length is not a number\n"
        send_line(FIXED["setosa"].replace(" ", ","))
        assert process.stdout.readline().startswith(b"setosa,")
        process.stdin.close()
        assert process.wait(60) == 3


@pytest.mark.long
def test_another_delimiter_is_recognized_or_named_and_a_repeated_name_is_refused(tmp_path):
    header = "id;sepal_length;sepal_width;petal_length;petal_width"
    command = [sys.executable, "-m", "iris_wsgi", "edge", "stream", "--model-dir", str(MODEL), "--device", str(tmp_path)]
    for text, words, status in (
        (f";;;;\n{header}\na;5.1;3.5;1.4;0.2\nb;5,1;3,5;1,4;0,2\n", ("--keep", "id"), 3),
        ("a#5.1#3.5#1.4#0.2\n", ("--no-header", "--features", "2,3,4,5", "--keep", "1", "--delimiter", "#"), 0),
        (f"{header}\na;5.1;3.5;1.4;0.2\n".replace("id;", "label;", 1), ("--keep", "label"), 2),
    ):
        result = subprocess.run([*command, *words], input=text, capture_output=True, text=True)
        assert result.returncode == status
        assert (result.stdout.splitlines()[1:] or [""])[0].startswith("" if status == 2 else "a,setosa,")
    assert "OUT has a column of this name already" in result.stderr


def test_lines_may_end_in_carriage_returns_and_each_gets_its_result_before_the_next_one_comes(tmp_path):
    command = [sys.executable, "-m", "iris_wsgi", "edge", "stream", "--model-dir", str(MODEL), "--device", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        # The reader must know whether a line feed follows the first carriage return.
        process.stdin.write(b"sepal_length,sepal_width,petal_length,petal_width\r5.1,3.5,1.4,0.2\r")
        process.stdin.flush()
        assert process.stdout.readline().startswith(b"label,") and process.stdout.readline().startswith(b"setosa,")
        process.stdin.write(b"6.7,3.1,4.7,1.5\r")
        process.stdin.flush()
        assert process.stdout.readline().startswith(b"versicolor,")
        result = process.communicate(b"7.2,3.6,6.1,2.5")[0]
    assert result.startswith(b"virginica,") and process.returncode == 0


def test_columns_are_found_by_name_and_others_are_repeated(tmp_path):
    text = "id,petal_width,petal_length,sepal_width,sepal_length\na7,0.2,1.4,3.5,5.1\na8,2.5,6.1,3.6,7.2\n"
    status, output, _ = streamed(tmp_path, text, "--keep", "id")
    assert status == 0
    assert [line.split(",")[:2] for line in output] == [["id", "label"], ["a7", "setosa"], ["a8", "virginica"]]


@pytest.mark.long
def test_columns_may_have_other_names_or_numbers_only(tmp_path):
    by_name = streamed(tmp_path, "\ufeffd,c,b,a\r\n0.2,1.4,3.5,5.1\r\n", "--features", "a,b,c,d")
    by_number = streamed(tmp_path, "x,0.2,1.4,3.5,5.1\n", "--no-header", "--features", "5,4,3,2")
    in_order = streamed(tmp_path, "\n5.1,3.5,1.4,0.2\n")
    assert by_name == by_number == in_order and in_order[0] == 0 and in_order[1][1].startswith("setosa,")


@pytest.mark.long
def test_json_lines_are_objects_or_lists_and_so_are_the_results(tmp_path):
    row = dict(zip(HEADER.split(","), map(float, FIXED["virginica"].split()), strict=True))
    status, output, _ = streamed(tmp_path, f"\n{json.dumps(row | {'id': 7})}\n{json.dumps(row | {'id': [8]})}\n", "--keep", "id")
    result = [json.loads(line) for line in output]
    assert status == 0 and [(item["id"], item["label"]) for item in result] == [(7, "virginica"), ([8], "virginica")]
    status, output, _ = streamed(tmp_path, "[7.2, 3.6, 6.1, 2.5]\n[5.1, 3.5, 1.4, 0.2]")
    assert status == 0 and [json.loads(line)["label"] for line in output] == ["virginica", "setosa"]
    assert json.loads(output[0])["probability_setosa"] == result[0]["probability_setosa"]


def test_bad_rows_are_reported_with_their_lines_and_the_others_are_predicted(tmp_path):
    long = b"1," * 600_000
    lines = [b"5.1,3.5,1.4,0.2", b"1,2,3", b"", b"1,2,,4", b"1,2,inf,4", b"\xff,1,1,1", long, b"6.7,3.1,4.7,1.5"]
    status, output, error_output = streamed(tmp_path, b"\n".join(lines))
    assert status == 3 and [line.partition(",")[0] for line in output] == ["label", "setosa", "versicolor"]
    assert error_output == [
        "iris_wsgi: line 2: has 3 columns, not 4",
        "iris_wsgi: line 4: column 3 is empty",
        "iris_wsgi: line 5: column 3 is not finite as a 32-bit float",
        "iris_wsgi: line 6: is not UTF-8",
        "iris_wsgi: line 7: is longer than 1048576 bytes",
    ]
    status, output, error_output = streamed(tmp_path, '{"sepal_length": 1}\n[1,2\n"x"\n')
    assert (status, output) == (3, [])
    assert [line.partition(": ")[2] for line in error_output] == [
        "line 1: column sepal_width is missing",
        "line 2: is not JSON",
        "line 3: is neither an object nor a list",
    ]


@pytest.mark.long
@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        ("a,b,c,d\n1,2,3,4\n", [], "IN has no column 'sepal_length'; it has a, b, c, d."),
        ("1,2,3\n", [], "IN has 3 columns, the model takes 4 features"),
        (f"{HEADER}\n", ["--keep", "id"], "IN has no column 'id'"),
        (f"{HEADER}\n", ["--features", "a,b"], "--features names 2 columns; the model takes 4"),
        (f"{HEADER}\n", ["--keep", ","], "--keep=',' must be different names"),
    ],
)
def test_missing_columns_are_an_invalid_argument(tmp_path, text, arguments, words):
    status, output, (error_output,) = streamed(tmp_path, text, *arguments)
    assert (status, output) == (2, []) and error_output.startswith(f"iris_wsgi: {words}")


def test_an_empty_stream_is_valid(tmp_path):
    assert streamed(tmp_path, "") == (0, [], [])


def test_a_stream_ends_in_one_line_after_an_interrupt_and_when_its_output_is_closed(tmp_path):
    row = FIXED["setosa"].replace(" ", ",").encode() + b"\n"
    # Coverage writes its data at the end, when another signal would not be caught.
    with piped(tmp_path, start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as process:
        process.stdin.write(row)
        process.stdin.flush()
        assert process.stdout.readline() and process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert (process.wait(60), process.stderr.read()) == (4, b"iris_wsgi: interrupted\n")
    with piped(tmp_path) as process:
        process.stdout.close()
        process.stdin.write(row)
        process.stdin.close()
        assert (process.wait(60), process.stderr.read()) == (5, b"iris_wsgi: stopped: Broken pipe\n")


def test_the_script_works(tmp_path):
    environment = os.environ | NO_COVERAGE | {"IRIS_STATE_DIR": str(tmp_path)}
    command = [ROOT / "bin/edge", "predict", *FIXED["versicolor"].split()]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.startswith("versicolor\n")
    result = subprocess.run([ROOT / "bin/edge", "--help"], capture_output=True, text=True, check=True, env=environment)
    assert all(name in result.stdout for name in ("predict", "stream", "update", "rollback", "status", "build", "pyz"))
