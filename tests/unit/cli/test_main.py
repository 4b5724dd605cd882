"""The command line: serve is the command of words without one, and the help names each command."""

import os
import subprocess
import sys

import pytest

from iris_wsgi.cli.main import COMMANDS, main, with_command


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["serve"]),
        (["--port", "9000"], ["serve", "--port", "9000"]),
        (["--prot=1"], ["serve", "--prot=1"]),
        (["worker"], ["worker"]),
        (["verify", "--model-dir", "x"], ["verify", "--model-dir", "x"]),
        (["--help"], ["--help"]),
        (["-h"], ["-h"]),
        (["--version"], ["--version"]),
        (["tuor"], ["tuor"]),
    ],
)
def test_words_without_a_command_serve(words, expected):
    assert [*with_command(words)] == expected


def test_the_help_lists_each_command_and_the_default_one(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0 and text.startswith("usage: iris-wsgi [COMMAND] [OPTION …]")
    assert "Without a command it serves every pattern on port 8000." in text
    for name, command in COMMANDS.items():
        assert f"{name} {command.help}" in text


def test_the_help_of_the_worker_names_its_own_port(capsys):
    with pytest.raises(SystemExit):
        main(["worker", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "(IRIS_PORT, default 8001)" in text and "on port 8001" in text and "--role" not in text


def test_the_command_of_the_package_is_that_of_the_module():
    command = os.path.join(os.path.dirname(sys.executable), "iris-wsgi")
    texts = [
        subprocess.run(words, capture_output=True, text=True, check=True).stdout
        for words in ([command, "serve", "--help"], [sys.executable, "-m", "iris_wsgi", "serve", "--help"])
    ]
    assert texts[0] == texts[1] and texts[0].startswith("usage: iris-wsgi serve ")


@pytest.mark.parametrize("command", COMMANDS)
def test_no_help_names_a_value_only_value(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert " VALUE\n" not in text and "default )" not in text
