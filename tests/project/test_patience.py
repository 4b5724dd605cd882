"""No test depends on the speed of the machine: tests wait for events, and a timeout only ends a test that hangs."""

import ast
from collections.abc import Iterator

import pytest
from project import TEST_FILES, dotted_name, parse_file

CLOCKS = {"time.monotonic", "time.perf_counter", "time.time", "time.process_time", "monotonic", "perf_counter"}
# Minimum of a timeout, which must only end a test that hangs.
MIN_TIMEOUT_SECONDS = 60
WAITS = {"join", "wait", "result", "exception", "communicate"}


def has_clock(node: ast.AST, names: frozenset[str] = frozenset()) -> bool:
    """Returns whether an expression reads a clock or one of these names, except as an argument of a call."""
    if isinstance(node, ast.Call):
        return dotted_name(node.func) in CLOCKS
    if isinstance(node, ast.Name):
        return node.id in names
    return any(has_clock(item, names) for item in ast.iter_child_nodes(node))


def is_difference(node: ast.AST) -> bool:
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub)


def durations(function: ast.AST) -> frozenset[str]:
    """Returns the names of the variables that hold differences of times."""
    return frozenset(
        target.id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and any(is_difference(item) and has_clock(item) for item in ast.walk(node.value))
        for target in node.targets
        if isinstance(target, ast.Name)
    )


def asserts_elapsed_time(tree: ast.AST) -> Iterator[ast.AST]:
    """Yields assertions about elapsed time."""
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        names = durations(function)
        for node in (item for item in ast.walk(function) if isinstance(item, ast.Assert)):
            for compared in (item for item in ast.walk(node.test) if isinstance(item, ast.Compare)):
                if has_clock(compared, names):
                    yield node


def sleeps_outside_loops(tree: ast.AST) -> Iterator[ast.AST]:
    """Yields sleeps outside of loops. Such a sleep stands for an event that the test should wait for."""
    looped = {id(item) for loop in ast.walk(tree) if isinstance(loop, ast.While | ast.For) for item in ast.walk(loop)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted_name(node.func) in ("time.sleep", "sleep") and id(node) not in looped:
            yield node


def short_timeouts(tree: ast.AST) -> Iterator[ast.AST]:
    """Yields waits with a short timeout. Timeouts below a second are the pace of a loop, or expected to expire."""
    for node in (item for item in ast.walk(tree) if isinstance(item, ast.Call)):
        bounds = [keyword.value for keyword in node.keywords if keyword.arg == "timeout"]
        if isinstance(node.func, ast.Attribute) and node.func.attr in WAITS and len(node.args) == 1:
            bounds += node.args
        constants = [bound.value for bound in bounds if isinstance(bound, ast.Constant) and isinstance(bound.value, int | float)]
        if any(1 <= seconds < MIN_TIMEOUT_SECONDS for seconds in constants):
            yield node


# Exceptions from each rule, with the reason.
ALLOWED = {
    asserts_elapsed_time: {
        # This timeout ends every test that hangs.
        ("http_clients.py", "assert now < began + TIMEOUT_SECONDS, f'not within {TIMEOUT_SECONDS} s: {what}'"),
        # The comparison does not depend on the elapsed time.
        ("test_metrics.py", "assert sample_value(text, 'process_start_time_seconds') < time.time()"),
        ("test_worker.py", "assert self.now <= context.deadline - LIMITS.run_seconds <= time.monotonic()"),
    },
    sleeps_outside_loops: {
        # The kill comes at a random moment, and the job clients try again a little later.
        ("job_clients.py", "time.sleep(max(0.0, self.started_at + age - time.monotonic()))"),
        ("job_clients.py", "time.sleep(0.005)"),
    },
    short_timeouts: {
        # The test ignores the result.
        ("test_application.py", "server.task_dispatcher.shutdown(timeout=1)"),
    },
}


@pytest.mark.long
@pytest.mark.parametrize("rule", ALLOWED, ids=lambda rule: rule.__name__)
def test_no_test_depends_on_the_speed_of_the_machine(rule):
    found = {(file.name, ast.unparse(node)) for file in TEST_FILES for node in rule(parse_file(file))}
    assert found - ALLOWED[rule] == set()


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (asserts_elapsed_time, "def test():\n    began = time.monotonic()\n    act()\n    assert time.monotonic() - began < 5"),
        (asserts_elapsed_time, "def test():\n    took = perf_counter() - began\n    assert 1 <= took < 5"),
        (asserts_elapsed_time, "def test():\n    while act():\n        assert time.monotonic() < end"),
        (sleeps_outside_loops, "def test():\n    act()\n    time.sleep(1)\n    assert acted()"),
        (short_timeouts, "thread.join(1)"),
        (short_timeouts, "process.communicate(timeout=10)"),
        (short_timeouts, "subprocess.run(command, timeout=30)"),
    ],
)
def test_a_test_that_depends_on_the_speed_is_found(rule, text):
    assert list(rule(ast.parse(text)))
    harmless = "def test():\n    ask(time.monotonic() + 5)\n    assert done == deadline\n    thread.join(60)"
    assert not list(rule(ast.parse(harmless)))
