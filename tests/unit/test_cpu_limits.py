"""The number of workers: limits of nested control groups of both versions, and of the machine."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cgroup_files import write_proc_folder
from project import MODEL

from iris_wsgi.cpu_limits import (
    MIB,
    WORKER_MIB,
    available_cpus,
    cpu_quota,
    folders,
    memory,
    memory_limit,
    model_bytes,
    worker_count,
)
from iris_wsgi.settings import Settings

USABLE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
SERVICE = "/system.slice/iris.service"


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulates two CPUs, because memory does not limit the number of workers on a single one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)


def test_without_control_groups_all_cpus_count(tmp_path):
    assert available_cpus(tmp_path) == (USABLE, f"{USABLE} CPUs, no quota")
    assert memory(tmp_path) == (MACHINE, "the memory of the machine")


@pytest.mark.parametrize(
    ("text", "count", "why"),
    [
        ("max 100000", USABLE, f"{USABLE} CPUs, no quota"),
        ("50000 100000", 1, f"cpu.max allows 0.5 of {USABLE} CPUs"),
        ("100000000 100000", USABLE, f"cpu.max allows 1000 of {USABLE} CPUs"),
        ("nonsense", USABLE, f"{USABLE} CPUs, no quota"),
        ("0 100000", USABLE, f"{USABLE} CPUs, no quota"),
        ("50000 0", USABLE, f"{USABLE} CPUs, no quota"),
    ],
)
def test_workers_follow_the_cpu_quota_of_version_2(tmp_path, text, count, why):
    assert available_cpus(write_proc_folder(tmp_path, "/", {"/": {"cpu.max": text}})) == (count, why)


@pytest.mark.parametrize(("quota", "allowed"), [("-1", None), ("50000", 0.5)])
def test_workers_follow_the_cpu_quota_of_version_1(tmp_path, quota, allowed):
    proc = write_proc_folder(tmp_path, "/", {"/": {"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": "100000"}}, "cpu")
    assert cpu_quota(proc) == (allowed and (allowed, "cpu.cfs_quota_us"))


def test_the_quota_that_systemd_sets_on_a_service_counts(tmp_path):
    """CPUQuota=50% and MemoryMax=300M are in the group of the unit. The root group does not have these files."""
    files = {"/": {}, "/system.slice": {"cpu.max": "max 100000", "memory.max": "max"}}
    files[SERVICE] = {"cpu.max": "50000 100000", "memory.max": str(300 * MIB)}
    proc = write_proc_folder(tmp_path, SERVICE, files)
    assert available_cpus(proc) == (1, f"cpu.max allows 0.5 of {USABLE} CPUs")
    assert memory_limit(proc) == (300 * MIB, "memory.max")


@pytest.mark.parametrize("inner", ["max 100000", "150000 100000", "25000 100000"])
def test_of_nested_groups_the_smallest_limit_counts(tmp_path, inner):
    files = {"/a": {"cpu.max": "50000 100000", "memory.max": "3000000"}, "/a/b": {}, "/a/b/c": {"cpu.max": inner}}
    files["/other"] = {"cpu.max": "1000 100000", "memory.max": "1000"}
    proc = write_proc_folder(tmp_path, "/a/b/c", files)
    assert cpu_quota(proc) == (0.25 if inner.startswith("25") else 0.5, "cpu.max")
    assert memory_limit(proc) == (3000000, "memory.max")


@pytest.mark.parametrize("controller", ["", "cpu"])
@pytest.mark.parametrize("group", ["/docker/abc", "/docker/abc/inner", "/../../outside", "/docker", "/not/mounted/here"])
def test_in_a_container_the_mounted_group_is_the_top(tmp_path, controller, group):
    """The container sees only its own group, with or without a cgroup namespace."""
    name, text = ("cpu.max", "50000 100000") if not controller else ("cpu.cfs_quota_us", "50000")
    top = {name: text, **({"cpu.cfs_period_us": "100000"} if controller else {})}
    proc = write_proc_folder(tmp_path, group, {"/docker/abc": top, "/docker/abc/inner": {}}, controller, "/docker/abc")
    assert cpu_quota(proc) == (0.5, name)
    mounted = tmp_path / "with blank" / (controller or "unified")
    assert all(folder.is_relative_to(mounted) and ".." not in folder.parts for folder in folders(controller, proc))


def test_memory_of_version_1_without_a_limit_is_that_of_the_machine(tmp_path):
    proc = write_proc_folder(tmp_path, "/x", {"/x": {"memory.limit_in_bytes": "9223372036854771712"}}, "memory")
    assert memory(proc) == (MACHINE, "the memory of the machine")
    (tmp_path / "with blank/memory/x/memory.limit_in_bytes").write_text("4096000\n")
    assert memory(proc) == (4096000, "memory.limit_in_bytes")


@pytest.mark.parametrize(("mib", "workers"), [(48, 1), (2 * WORKER_MIB - 1, 1), (2 * WORKER_MIB + 20, 2), (10_000, 2)])
def test_memory_limits_the_workers_and_the_start_states_the_reason(tmp_path, two_cpus, mib, workers):
    proc = write_proc_folder(tmp_path, "/", {"/": {"memory.max": str(mib * MIB)}})
    count, why = worker_count(Settings(model_dir=str(MODEL)), proc)
    assert count == workers
    if workers == 2:
        assert why == "2 CPUs, no quota"
    else:
        assert re.fullmatch(rf"memory allows 1: memory.max is {mib} MiB, at {WORKER_MIB} MiB each", why), why
    assert worker_count(Settings(workers=3), proc) == (3, "as set")


def test_all_graphs_of_a_model_folder_count_and_no_deeper_folder_is_searched(tmp_path):
    for name in ("a.onnx", "fast/b.onnx", "members/one/c.onnx", "not/a/model/d.onnx", "members/one/deep/e.onnx"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    assert model_bytes(Settings(model_dir=str(tmp_path))) == 15
    # A search in all folders of the system would take minutes, and fail in /proc.
    assert model_bytes(Settings(model_dir="/")) == 0


def test_the_size_of_the_model_counts_for_each_worker(tmp_path, two_cpus):
    (tmp_path / "model").mkdir()
    with (tmp_path / "model/large.onnx").open("wb") as file:
        file.truncate(200 * MIB)
    settings = Settings(model_dir=str(tmp_path / "model"))
    assert model_bytes(settings) == 200 * MIB
    proc = write_proc_folder(tmp_path, "/", {"/": {"memory.max": str(900 * MIB)}})
    assert worker_count(settings, proc) == (1, "memory allows 1: memory.max is 900 MiB, at 500 MiB each")


@pytest.fixture
def real_group() -> Iterator[Path]:
    """Control group of this machine with half a CPU, and a nested group."""
    outer = Path(f"/sys/fs/cgroup/cpu/iris-test-{os.getpid()}")
    inner = outer / "inner"
    try:
        inner.mkdir(parents=True)
        (outer / "cpu.cfs_quota_us").write_text("50000")
    except OSError as error:
        with suppress(OSError):
            outer.rmdir()
        pytest.skip(f"no right to make a control group of version 1: {error.strerror}")
    yield inner
    inner.rmdir()
    outer.rmdir()


def test_a_server_applies_the_quota_of_its_control_group_and_those_around_it(run, real_group):
    server = run(
        "--role", "web_single", "--workers", "0", under=("sh", "-c", f'echo $$ > {real_group}/cgroup.procs; exec "$@"', "sh")
    )
    assert f"workers: 1 (cpu.cfs_quota_us allows 0.5 of {USABLE} CPUs)" in "\n".join(server.startup_lines)
    server.stop()
