"""Settings: one table, from the environment and from flags, and what is refused."""

import subprocess
import sys

import pytest

from iris_wsgi.__main__ import main, parser
from iris_wsgi.settings import BadSetting, Settings, fields, flag_of, name_of, read_settings
from iris_wsgi.stores.choice import open_jobs


def test_defaults_are_those_of_the_table():
    assert read_settings({}, {}) == Settings()
    assert (Settings().host, Settings().port, Settings().role) == ("127.0.0.1", 8000, "all")
    assert (Settings().max_body_bytes, Settings().max_rows) == (1024 * 1024, 10_000)


def test_the_environment_and_flags_set_the_same_and_a_flag_wins():
    assert read_settings({"IRIS_PORT": "9000", "PATH": "/bin"}, {}).port == 9000
    assert read_settings({}, {"port": "9001"}).port == 9001
    assert read_settings({"IRIS_PORT": "9000"}, {"port": "9001", "host": None}).port == 9001


def test_every_setting_has_a_flag_a_variable_and_a_help_text():
    text = next(a for a in parser(["serve"])._actions if a.dest == "command").choices["serve"].format_help()
    squeezed = " ".join(text.split())
    for one in fields(Settings):
        assert f"{flag_of(one.name)} VALUE" in squeezed
        assert f"({name_of(one.name)}, default {one.default})" in squeezed
        assert one.metadata["help"] in squeezed


@pytest.mark.parametrize(
    ("name", "value"),
    [("IRIS_PORT", v) for v in ("", "x", "-1", "65536", "8000.0", " 8000", "8_000", "٨٠", "²", "1" * 5000)]
    + [("IRIS_MAX_ROWS", v) for v in ("0", "-5", "10000001")]
    + [("IRIS_MAX_BODY_BYTES", "63"), ("IRIS_THREADS", "1001"), ("IRIS_ROLE", "single"), ("IRIS_ROLE", ""), ("IRIS_HOST", "")]
    + [("IRIS_HOST", "a\nb"), ("IRIS_MODEL_DIR", "")]
    + [("IRIS_ESCALATE_BELOW", v) for v in ("", "1.1", "-0.1", "2", "1e-3", "nan", " 1")]
    + [("IRIS_JOBS_QUEUED", "0"), ("IRIS_JOBS_ATTEMPTS", "0"), ("IRIS_LEASE_SECONDS", "0"), ("IRIS_FAST_MODEL_DIR", "a\nb")]
    + [("IRIS_IDLE_SECONDS", v) for v in ("", "0", "-1", "nan", "inf", "1e3", "1_0", " 1", "86401", "٣")],
)
def test_a_wrong_value_is_told_with_its_name_in_one_line(name, value):
    with pytest.raises(BadSetting, match=f"^{name}=") as caught:
        read_settings({name: value}, {})
    assert "must be" in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 250
    field = name.removeprefix("IRIS_").lower()
    with pytest.raises(BadSetting, match=f"^{flag_of(field)}="):
        read_settings({}, {field: value})


@pytest.mark.parametrize(
    "value", ["localhost:6379", "http://:secret@h", "redis://", "redis://:secret@h\n", "redis://:sec ret@h", "unix://s"]
)
def test_the_address_of_a_redis_may_hold_a_password_and_is_never_shown(value):
    with pytest.raises(BadSetting) as told:
        read_settings({"IRIS_REDIS_URL": value}, {})
    assert (
        "redis://, rediss:// or unix:///" in str(told.value)
        and "sec" not in str(told.value)
        and "localhost" not in str(told.value)
    )
    assert "secret" not in repr(Settings(redis_url="redis://:secret@h"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("redis_url", f"{url}hunter@h:6379/0") for url in ("redis://:", "rediss://user:", "redis://user%40there:")),
        *(("cache_redis_url", "redis://h?password=hunter"), ("items_redis_url", "unix:///run/redis?db=1&password=hunter")),
        *(
            ("database_url", f"postgresql://{rest}")
            for rest in ("u:hun%2Fter@h/d", "u@h/d?password=hunter", "h/d?p%61ssword=hunter")
        ),
    ],
)
def test_a_password_on_the_command_line_is_refused_and_the_way_out_told(name, value):
    with pytest.raises(BadSetting, match=f"^{flag_of(name)} has a password, .* {name_of(name)} in the environment") as told:
        read_settings({}, {name: value})
    assert "hun" not in str(told.value) and "secretKeyRef" in str(told.value)
    assert getattr(read_settings({name_of(name): value, "IRIS_CACHE": "on"}, {}), name) == value


def test_an_address_without_a_password_is_a_flag_like_others():
    for name, value in (("redis_url", "redis://h:6379/0"), ("database_url", "postgresql://u@h:5432/d?sslmode=verify-full")):
        assert getattr(read_settings({}, {name: value}), name) == value
    assert read_settings({}, {"database_url": "sqlite:///odd:name@home.db?password=x"}).database_url.endswith("=x")


@pytest.mark.parametrize("value", ["redis://:secret@h:port", "redis://:secret@h:99999/0x"])
def test_an_address_that_only_the_library_finds_wrong_is_not_shown_either(value):
    with pytest.raises(BadSetting, match="IRIS_REDIS_URL is no address of a Redis") as told:
        open_jobs(Settings(redis_url=value), 0.1)
    assert "secret" not in str(told.value)


def test_a_share_may_be_written_as_people_write_it():
    for text, number in (("0", 0.0), ("1", 1.0), ("0.9", 0.9), (".5", 0.5), ("1.0", 1.0), ("0.0001", 0.0001)):
        assert read_settings({"IRIS_ESCALATE_BELOW": text}, {}).escalate_below == number


def test_an_unknown_variable_is_told_with_the_nearest_that_exists():
    with pytest.raises(BadSetting, match="^IRIS_PROT is no setting; did you mean IRIS_PORT?"):
        read_settings({"IRIS_PROT": "8000"}, {})
    with pytest.raises(BadSetting, match="^IRIS_QQQQQQQQ is no setting; there are .*IRIS_HOST"):
        read_settings({"IRIS_QQQQQQQQ": ""}, {})


def test_a_contradiction_is_told_with_both_names():
    with pytest.raises(BadSetting, match="IRIS_MAX_ROWS=10000 .* IRIS_MAX_BODY_BYTES=1000"):
        read_settings({"IRIS_MAX_BODY_BYTES": "1000"}, {})
    assert read_settings({"IRIS_MAX_BODY_BYTES": "1000", "IRIS_MAX_ROWS": "250"}, {}).max_rows == 250
    with pytest.raises(BadSetting, match="IRIS_HEADER_SECONDS=40 .* IRIS_REQUEST_SECONDS=30"):
        read_settings({"IRIS_HEADER_SECONDS": "40"}, {})
    with pytest.raises(BadSetting, match="IRIS_PENDING_BYTES=1000 .* IRIS_MAX_BODY_BYTES=1048576"):
        read_settings({"IRIS_PENDING_BYTES": "1000"}, {})


def test_create_app_checks_its_settings_too():
    with pytest.raises(BadSetting, match="IRIS_ROLE='none'"):
        Settings(role="none")


@pytest.mark.parametrize("command", ["serve", "worker", "redrive", "verify", "seal"])
def test_a_wrong_setting_ends_a_command_with_status_2_and_one_line(command, monkeypatch, capsys):
    monkeypatch.setenv("IRIS_PROT", "1")
    assert main([command]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("iris_wsgi: IRIS_PROT is no setting") and err.count("\n") == 1


def test_help_and_version_load_no_model():
    for argument in ("--help", "--version"):
        command = [sys.executable, "-X", "importtime", "-m", "iris_wsgi", argument]
        told = subprocess.run(command, check=True, capture_output=True, text=True)
        assert "argparse" in told.stderr
        assert "onnxruntime" not in told.stderr
