"""Settings: the table, the environment and the flags, and the refused values."""

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from project import MODEL, ROOT
from server_process import error_of

from iris_wsgi.cli.main import SERVERS, main, parser
from iris_wsgi.model.artifact import GOLDEN, UNPACKED_SUFFIXES
from iris_wsgi.patterns.asynchronous.sqlite_store import create_job_store
from iris_wsgi.settings import (
    GROUPS,
    MODEL_FILES,
    REMOVED,
    SERVER_SETTINGS,
    BadSetting,
    Settings,
    application_settings,
    default_state_dir,
    fields,
    flag_of,
    name_of,
    read_settings,
)


def test_the_defaults_are_those_of_the_table():
    assert read_settings({}, {}) == Settings()
    assert (Settings().host, Settings().port, Settings().role) == ("127.0.0.1", 8000, "all")
    assert (Settings().max_body_bytes, Settings().max_rows) == (1024 * 1024, 10_000)


def test_the_environment_and_flags_set_the_same_and_a_flag_wins():
    assert read_settings({"IRIS_PORT": "9000", "PATH": "/bin"}, {}).port == 9000
    assert read_settings({}, {"port": "9001"}).port == 9001
    assert read_settings({"IRIS_PORT": "9000"}, {"port": "9001", "host": None}).port == 9001


def test_every_setting_has_a_flag_a_variable_and_a_help_text(monkeypatch, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/golden.json").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IRIS_STATE_DIR", "/var/lib/100%")
    # argparse breaks lines within words with a hyphen.
    monkeypatch.setenv("COLUMNS", "2000")
    text = next(a for a in parser(["serve"])._actions if a.dest == "command").choices["serve"].format_help()
    squeezed = " ".join(text.split())
    for field in fields(Settings):
        assert re.search(rf" {flag_of(field.name)} (?!VALUE)[A-Za-z]\S* ", squeezed)
        default = {"model_dir": "model", "state_dir": "/var/lib/100%"}.get(field.name, field.default)
        assert f"({name_of(field.name)}, default {'empty' if default == '' else default})" in squeezed
        assert field.metadata["help"] in squeezed


def test_every_setting_is_in_one_group_of_the_help():
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(field.name for field in fields(Settings))


def test_the_help_names_the_unit_of_a_value():
    text = next(a for a in parser(["serve"])._actions if a.dest == "command").choices["serve"].format_help()
    assert re.findall(r"--(?:cache-seconds|max-rows|redis-url|state-dir|items-bytes|cache|pred-url|threads) (\S+)", text) == [
        *("DIR", "ROWS", "URL", "auto|on|off", "SECONDS", "BYTES", "URL", "NUMBER")
    ]
    assert "[-h]" not in text


def test_the_folder_model_is_the_default_only_where_it_has_a_model(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert Settings().model_dir == str(MODEL)
    (tmp_path / "model").mkdir()
    # A package of a user may have this name.
    (tmp_path / "model/__init__.py").touch()
    assert Settings().model_dir == str(MODEL)
    for name in ("golden.json", "net.onnx", "forest.joblib"):
        (tmp_path / "model" / name).touch()
        assert Settings().model_dir == "model"
        assert Settings(model_dir="other").model_dir == "other"
        assert read_settings({"IRIS_MODEL_DIR": ""}, {}).model_dir == "model"
        (tmp_path / "model" / name).unlink()
    assert (GOLDEN, *UNPACKED_SUFFIXES) == MODEL_FILES


def test_an_installed_package_has_its_model_in_itself_and_its_state_in_the_home(monkeypatch, tmp_path):
    package = tmp_path / "lib/iris_wsgi"
    (package / "iris_model").mkdir(parents=True)
    monkeypatch.setattr("iris_wsgi.settings.__file__", str(package / "settings.py"))
    monkeypatch.setattr("iris_wsgi.console.PROJECT", str(package.parent))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "states"))
    assert (Settings().model_dir, Settings().state_dir) == (str(package / "iris_model"), str(tmp_path / "states/iris-wsgi"))
    monkeypatch.setenv("IRIS_STATE_DIR", "here")
    assert read_settings(os.environ, {}).state_dir == "here"


@pytest.mark.parametrize(
    ("environ", "home", "folder"),
    [
        ({"XDG_STATE_HOME": "/states", "HOME": "/home/a"}, "/home/b", "/states/iris-wsgi"),
        ({"XDG_STATE_HOME": "relative", "HOME": "/home/a"}, "/home/b", "/home/a/.local/state/iris-wsgi"),
        ({"XDG_STATE_HOME": "", "HOME": ""}, "/home/b", "/home/b/.local/state/iris-wsgi"),
        ({}, "/root", "/root/.local/state/iris-wsgi"),
        ({}, None, "state"),
    ],
)
def test_the_state_of_an_installed_package_is_where_xdg_says(environ, home, folder, monkeypatch):
    def user(_: int) -> SimpleNamespace:
        if home is None:
            raise KeyError
        return SimpleNamespace(pw_dir=home)

    monkeypatch.setattr("iris_wsgi.settings.project_folder", lambda: None)
    monkeypatch.setattr("pwd.getpwuid", user)
    assert default_state_dir(environ) == folder


def test_the_state_of_the_project_is_in_its_folder_from_every_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert Settings().state_dir == str(ROOT / "state")


@pytest.mark.parametrize(
    ("name", "value"),
    [("IRIS_PORT", v) for v in ("", "x", "-1", "65536", "8000.0", " 8000", "8_000", "٨٠", "²", "1" * 5000)]
    + [("IRIS_MAX_ROWS", v) for v in ("0", "-5", "10000001")]
    + [("IRIS_MAX_BODY_BYTES", "63"), ("IRIS_THREADS", "1001"), ("IRIS_ROLE", "single"), ("IRIS_ROLE", ""), ("IRIS_HOST", "")]
    + [("IRIS_HOST", "a\nb"), ("IRIS_MODEL_DIR", "a\nb"), ("IRIS_STATE_DIR", "\x1b")]
    + [("IRIS_ESCALATE_BELOW", v) for v in ("", "1.1", "-0.1", "2", "1e-3", "nan", " 1")]
    + [("IRIS_JOBS_QUEUED", "0"), ("IRIS_JOBS_ATTEMPTS", "0"), ("IRIS_LEASE_SECONDS", "0"), ("IRIS_EDGE_DIR", "a\nb")]
    + [("IRIS_ITEMS_SECONDS", v) for v in ("", "0", "-1", "nan", "inf", "1e3", "1_0", " 1", "86401", "٣")],
)
def test_an_invalid_value_is_reported_with_its_name_in_one_line(name, value):
    with pytest.raises(BadSetting, match=f"^{name}=") as caught:
        read_settings({name: value}, {})
    assert "must be" in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 250
    field = name.removeprefix("IRIS_").lower()
    with pytest.raises(BadSetting, match=f"^{flag_of(field)}="):
        read_settings({}, {field: value})


@pytest.mark.parametrize(
    "value", ["localhost:6379", "http://:secret@h", "redis://", "redis://:secret@h\n", "redis://:sec ret@h", "unix://s"]
)
def test_a_redis_url_may_contain_a_password_that_is_never_shown(value):
    with pytest.raises(BadSetting) as error:
        read_settings({"IRIS_REDIS_URL": value}, {})
    assert (
        "redis://, rediss:// or unix:///" in str(error.value)
        and "sec" not in str(error.value)
        and "localhost" not in str(error.value)
    )
    assert "secret" not in repr(Settings(redis_url="redis://:secret@h"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("redis_url", f"{url}hunter@h:6379/0") for url in ("redis://:", "rediss://user:", "redis://user%40there:")),
        *(("cache_redis_url", "redis://h?password=hunter"), ("redis_url", "unix:///run/redis?db=1&password=hunter")),
        *(
            ("database_url", f"postgresql://{rest}")
            for rest in ("u:hun%2Fter@h/d", "u@h/d?password=hunter", "h/d?p%61ssword=hunter")
        ),
    ],
)
def test_a_password_on_the_command_line_is_refused_with_the_solution(name, value):
    with pytest.raises(BadSetting, match=f"^{flag_of(name)} has a password, .* {name_of(name)} in the environment") as error:
        read_settings({}, {name: value})
    assert "hun" not in str(error.value) and "secretKeyRef" in str(error.value)
    assert getattr(read_settings({name_of(name): value, "IRIS_CACHE": "on"}, {}), name) == value


def test_a_url_without_a_password_can_be_a_flag():
    for name, value in (("redis_url", "redis://h:6379/0"), ("database_url", "postgresql://u@h:5432/d?sslmode=verify-full")):
        assert getattr(read_settings({}, {name: value}), name) == value
    assert read_settings({}, {"database_url": "sqlite:///odd:name@home.db?password=x"}).database_url.endswith("=x")


@pytest.mark.parametrize("value", ["redis://:secret@h:port", "redis://:secret@h:99999/0x"])
def test_a_url_that_only_the_library_rejects_is_not_shown_either(value):
    with pytest.raises(BadSetting, match="IRIS_REDIS_URL is not an address of a Redis server") as error:
        create_job_store(Settings(redis_url=value), 0.1)
    assert "secret" not in str(error.value)


def test_a_fraction_may_be_written_in_several_ways():
    for text, number in (("0", 0.0), ("1", 1.0), ("0.9", 0.9), (".5", 0.5), ("1.0", 1.0), ("0.0001", 0.0001)):
        assert read_settings({"IRIS_ESCALATE_BELOW": text}, {}).escalate_below == number


def test_an_unknown_variable_is_reported_with_the_most_similar_one():
    with pytest.raises(BadSetting, match="^IRIS_PROT is not a setting; did you mean IRIS_PORT?"):
        read_settings({"IRIS_PROT": "8000"}, {})
    with pytest.raises(BadSetting, match="^IRIS_QQQQQQQQ is not a setting; the settings are .*IRIS_HOST"):
        read_settings({"IRIS_QQQQQQQQ": ""}, {})


# Variables that Kubernetes sets in each pod of a namespace with Services named iris and iris-redis-url.
OF_SERVICES = {
    "IRIS_SERVICE_HOST": "10.0.0.7",
    "IRIS_SERVICE_PORT": "80",
    "IRIS_SERVICE_PORT_HTTP": "80",
    "IRIS_PORT": "tcp://10.0.0.7:80",
    "IRIS_PORT_80_TCP": "tcp://10.0.0.7:80",
    "IRIS_PORT_80_TCP_PROTO": "tcp",
    "IRIS_PORT_80_TCP_PORT": "80",
    "IRIS_PORT_80_TCP_ADDR": "10.0.0.7",
    "IRIS_REDIS_URL_SERVICE_HOST": "fd00::7",
    "IRIS_REDIS_URL_SERVICE_PORT": "53",
    "IRIS_REDIS_URL_PORT": "udp://[fd00::7]:53",
    "IRIS_REDIS_URL_PORT_53_UDP": "udp://[fd00::7]:53",
    "IRIS_REDIS_URL_PORT_53_UDP_PROTO": "udp",
    "IRIS_REDIS_URL_PORT_53_UDP_PORT": "53",
    "IRIS_REDIS_URL_PORT_53_UDP_ADDR": "fd00::7",
    "IRIS_SVC_PORT": "sctp://10.0.0.7:80",
}


def test_the_variables_of_a_kubernetes_service_are_ignored():
    for name, value in OF_SERVICES.items():
        assert read_settings({name: value}, {}) == Settings()
    assert read_settings(OF_SERVICES, {}) == Settings()
    assert read_settings(OF_SERVICES | {"IRIS_ROLE": "worker"}, {"port": "9001"}, {"port": 8001}).port == 9001


def test_a_numeric_port_stays_a_setting_next_to_a_kubernetes_service():
    assert read_settings(OF_SERVICES | {"IRIS_PORT": "9000"}, {}).port == 9000
    # Of the variables of a Service, only this name is also a setting.
    suffixes = [
        field.name
        for field in fields(Settings)
        if field.name.endswith(("port", "_host", "_proto", "_addr", "_tcp", "_udp", "_sctp"))
    ]
    assert suffixes == ["port"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("IRIS_PORT", value) for value in ("http://10.0.0.7:80", "tcp://", "tcp:10.0.0.7", "10.0.0.7:80", "80 ", "tcp://a b")),
        *(("IRIS_SERVICE_HOST", value) for value in ("", "example.com")),
        ("IRIS_SERVICE_PORT", "http"),
        ("IRIS_SVC_PORT", "80"),
        ("IRIS_PORT_80_TCP_PROTO", "http"),
        ("IRIS_PORT_80", "tcp://10.0.0.7:80"),
        ("IRIS_PORTS", "tcp://10.0.0.7:80"),
        ("IRIS_HOST", "tcp://10.0.0.7:80\n"),
        ("IRIS_PROT", "8000"),
    ],
)
def test_variables_that_only_resemble_those_of_a_service_are_refused(name, value):
    with pytest.raises(BadSetting, match=f"^{name}[= ]"):
        read_settings({name: value}, {})


@pytest.mark.parametrize("command", ["verify", "redrive"])
def test_a_service_named_iris_stops_no_command(command, tmp_path):
    environ = os.environ | OF_SERVICES | {"IRIS_MODEL_DIR": str(MODEL), "IRIS_STATE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-m", "iris_wsgi", command], env=environ, check=True, capture_output=True)


def test_an_application_reads_the_environment_and_its_arguments_win():
    environ = {"IRIS_ROLE": "web_single", "IRIS_MAX_ROWS": "7", **OF_SERVICES}
    settings, ignored = application_settings(environ, {"max_rows": "9", "model_dir": MODEL})
    assert (settings.role, settings.max_rows, settings.model_dir, ignored) == ("web_single", 9, str(MODEL), [])


def test_an_application_names_the_variables_without_effect_under_another_server():
    environ = {"IRIS_PORT": "9000", "IRIS_GRACE_SECONDS": "40", "IRIS_MAX_BODY_BYTES": "33554432", "IRIS_ROLE": "pred"}
    settings, ignored = application_settings(environ, {})
    assert ignored == ["IRIS_GRACE_SECONDS", "IRIS_PORT"] and settings.max_body_bytes == 33554432
    with pytest.raises(BadSetting, match="^IRIS_PORT='x' must be"):
        application_settings({"IRIS_PORT": "x"}, {})


def test_an_application_refuses_arguments_that_are_unknown_invalid_or_of_another_server():
    for arguments, expected in (
        ({"rol": "all"}, "^rol is not a setting; did you mean role[?]$"),
        ({"role": "none"}, "^role='none' must be one of all, "),
        ({"max_rows": True}, "^max_rows='True' must be a whole number"),
        ({"port": 8000}, "^port is a setting of bin/serve alone; "),
        ({"drain_seconds": 1}, "^drain_seconds is a setting of bin/serve alone; "),
        ({"qqqqqqqq": 1}, "^qqqqqqqq is not a setting; the settings are allowed_hosts, role, "),
        ({"redis_url": "secret"}, "^redis_url must begin with redis://"),
    ):
        with pytest.raises(BadSetting, match=expected) as caught:
            application_settings({}, arguments)
        assert "--" not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(BadSetting, match="^IRIS_PROT is not a setting"):
        application_settings({"IRIS_PROT": "1"}, {})


def test_the_settings_of_the_server_are_those_that_the_application_never_reads():
    package = ROOT / "iris_wsgi"
    server = {*(package / "server").glob("*.py"), *(package / "cli").glob("*.py"), package / "cpu_limits.py"}
    reads = re.compile(r"\b(?:settings|limits|chosen)\.(\w+)").findall
    read = {path: set(reads(path.read_text())) for path in package.rglob("*.py")}
    factory = package / "factory.py"
    elsewhere = set().union(*(names for path, names in read.items() if path not in server | {factory}))
    elsewhere |= read[factory] - {"host"}
    assert not SERVER_SETTINGS & elsewhere
    # The commands warm, healthcheck, and clear call a server of ours. The batch command has its own workers.
    named = {field.name for field in fields(Settings)} & set().union(*(read[path] for path in server))
    # Settings of a role that the server needs to count file descriptors and memory.
    of_a_role = {"model_dir", "state_dir", "role", "batch_rows", "token_file", "model_seal", "member", "members", "pred_url"}
    assert named - of_a_role - {"max_body_bytes"} == SERVER_SETTINGS


def test_a_contradiction_is_reported_with_both_names():
    with pytest.raises(BadSetting, match="IRIS_MAX_ROWS=10000 .* IRIS_MAX_BODY_BYTES=1000"):
        read_settings({"IRIS_MAX_BODY_BYTES": "1000"}, {})
    assert read_settings({"IRIS_MAX_BODY_BYTES": "1000", "IRIS_MAX_ROWS": "250"}, {}).max_rows == 250
    with pytest.raises(BadSetting, match="IRIS_PENDING_BYTES=1000 .* IRIS_MAX_BODY_BYTES=1048576"):
        read_settings({"IRIS_PENDING_BYTES": "1000"}, {})


def test_there_are_at_most_44_settings_and_none_of_them_was_removed():
    assert len(fields(Settings)) <= 44
    assert not REMOVED.keys() & {field.name for field in fields(Settings)}


@pytest.mark.parametrize("name", REMOVED)
def test_a_removed_setting_stops_the_start_with_one_line_of_advice(name, capsys):
    result = f"was removed; {REMOVED[name]}"
    assert "\n" not in result
    with pytest.raises(BadSetting, match=f"^{re.escape(f'{name_of(name)} {result}')}$"):
        read_settings({name_of(name): "x"}, {})
    with pytest.raises(BadSetting, match=f"^{re.escape(f'{name} {result}')}$"):
        application_settings({}, {name: 1})
    for command in ("serve", "worker", *["verify"] * (name == "fast_model_dir")):
        assert main([command, flag_of(name), "x"]) == 2
        error = capsys.readouterr().err
        assert (
            error_of(error) == f"{flag_of(name)} {result}"
            if command != "verify"
            else error == f"iris_wsgi: {flag_of(name)} {result}\n"
        )


def test_settings_made_in_python_are_checked_too():
    with pytest.raises(BadSetting, match="IRIS_ROLE='none'"):
        Settings(role="none")


@pytest.mark.parametrize("command", ["serve", "worker", "redrive", "verify"])
def test_an_invalid_setting_ends_a_command_with_status_2_and_one_line(command, monkeypatch, capsys):
    monkeypatch.setenv("IRIS_PROT", "1")
    assert main([command]) == 2
    out, err = capsys.readouterr()
    error = error_of(err) if command in SERVERS else err.removeprefix("iris_wsgi: ").removesuffix("\n")
    assert out == "" and error == "IRIS_PROT is not a setting; did you mean IRIS_PORT?"


def test_help_and_version_load_no_model():
    for argument in ("--help", "--version"):
        command = [sys.executable, "-X", "importtime", "-m", "iris_wsgi", argument]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        assert "argparse" in result.stderr
        assert "onnxruntime" not in result.stderr
