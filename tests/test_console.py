import argparse
import errno
import json
import math
import os
import signal
import threading

import pytest

from mnist_jax import device, startup
from mnist_jax.commands import console
from mnist_jax.compiled import keep_compiled
from mnist_jax.errors import InputError
from mnist_jax.storage import files


@pytest.mark.parametrize(
    ("kind", "limits", "text", "value"),
    [(int, (1,), "1", 1), (int, (0, 5), "5", 5), (float, (0, 10), "1e-3", 1e-3), (float, (0,), "0", 0.0)],
)
def test_number(kind, limits, text, value):
    assert console.number(kind, *limits)(text) == value


@pytest.mark.parametrize(
    ("kind", "limits", "options", "text", "message"),
    [
        (int, (1,), {}, "0", "'0' is not a whole number of at least 1"),
        (int, (1,), {}, "1.5", "'1.5' is not a whole number of at least 1"),
        (int, (1, 3), {}, "4", "'4' is not a whole number of at least 1 and at most 3"),
        (float, (0,), {"above": True}, "0", "'0' is not a number above 0"),
        (float, (0,), {}, "inf", "'inf' is not a number of at least 0"),
        (float, (0,), {}, "nan", "'nan' is not a number of at least 0"),
        (float, (0,), {}, "many", "'many' is not a number of at least 0"),
    ],
)
def test_number_out_of_range(kind, limits, options, text, message):
    with pytest.raises(argparse.ArgumentTypeError) as error:
        console.number(kind, *limits, **options)(text)
    assert str(error.value) == message


def test_parser_raises_one_line_and_takes_no_abbreviations():
    parser = console.Parser("train", "Trains.")
    with pytest.raises(InputError, match=r"unrecognized arguments: --js; python -m mnist_jax\.train --help"):
        parser.parse_args(["--js"])


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (InputError("no such file"), 2, "error: no such file\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (console.Terminated(), 143, "terminated\n"),
        (SystemExit(0), 0, ""),
        (files.NotWritten("f", OSError(errno.EROFS, "R")), 2, "error: cannot write f (R); choose another --output\n"),
        (
            files.NotWritten("f", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
            2,
            "error: cannot write f (No space left on device); free some space or choose another --output\n",
        ),
    ],
)
def test_run_turns_errors_into_a_line_and_a_status(raised, status, line, capsys):
    def main(argv):
        raise raised

    with pytest.raises(SystemExit) as ended:
        console.run(main)
    assert ended.value.code == status
    assert capsys.readouterr() == ("", line)


def test_report(capsys):
    console.report({"a": 1}, "text", as_json=True)
    assert json.loads(capsys.readouterr().out) == {"a": 1}
    console.report({"a": 1}, "text", as_json=False)
    assert capsys.readouterr().out == "text\n"


def test_json_is_strict(capsys):
    console.report({"norm": math.inf, "loss": math.nan}, "", as_json=True)
    assert capsys.readouterr().out == '{"norm": "inf", "loss": null}\n'


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, console.Terminated)])
def test_interrupt_notes_a_signal_and_gives_back_what_signals_did(number, kind):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with console.Interrupt() as interrupt:
        assert not interrupt.wanted
        signal.raise_signal(number)
        assert type(interrupt.wanted) is kind
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a second one ends the work at once
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_interrupt_leaves_signals_alone_in_other_threads():
    failures = []

    def work():
        try:
            with console.Interrupt() as interrupt:
                assert not interrupt.wanted
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures


def test_a_figure_that_cannot_be_written_is_a_line(tmp_path, capsys):
    assert console.draw(tmp_path / "a.png", lambda: b"png") == tmp_path / "a.png"
    assert console.draw(tmp_path / "missing" / "a.png", lambda: b"png") is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: no figure: cannot write")


def test_a_platform_that_is_not_there_is_one_line(monkeypatch):
    for error in (RuntimeError("Unable to initialize backend 'cuda'\nmore"), AssertionError()):

        def describe(error=error):
            raise error

        monkeypatch.setattr(device, "describe", describe)
        monkeypatch.setenv("JAX_PLATFORMS", "cuda")
        with pytest.raises(InputError, match="JAX has no device for JAX_PLATFORMS=cuda") as raised:
            console.start()
        assert "\n" not in str(raised.value)


def test_a_command_works_without_a_folder_for_compiled_programs(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(console, "keep_compiled", lambda: keep_compiled(tmp_path / "file" / "programs"))
    console.start()
    device, note = capsys.readouterr().err.splitlines()
    assert device.startswith("device: ")
    assert note.startswith("note: compiled programs are not kept for the next time: ")


def test_only_a_command_that_is_starting_is_one(monkeypatch):
    for argv, words, starting in (
        (["-m", "--json"], ["python", "-W", "error", "-m", "mnist_jax.train", "--json"], True),
        (["-m"], ["python", "-m", "other.mnist_jax"], False),
        (["/x/mnist_jax/train.py"], ["python", "-m", "mnist_jax.train"], False),  # it runs already
        (["script.py", "-m", "mnist_jax.train"], ["python", "script.py", "-m", "mnist_jax.train"], False),
        ([""], ["python"], False),
    ):
        monkeypatch.setattr("sys.argv", argv)
        monkeypatch.setattr("sys.orig_argv", words)
        assert startup.commanded() == starting


@pytest.fixture
def shell(command, tmp_path):
    """Runs a command by a shell that closes or redirects its streams; returns exit status, stdout and stderr."""

    def finish(how, module, *arguments, **environment):
        prefix = ("sh", "-c", f'exec "$@" {how}', "sh")
        process = command(module, *arguments, cwd=tmp_path, prefix=prefix, env=environment)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    return finish


def test_streams_that_are_closed_or_full(shell, few_digits):
    evaluate = ("evaluate", "--model", "MLP-original", "--data-dir", few_digits, "--json")
    for how in ("<&- 2>&-", "2>/dev/full"):
        status, out, _ = shell(how, *evaluate)
        assert status == 0
        assert json.loads(out)["networks"]  # stdout has the JSON and nothing else
    status, out, err = shell(">&-", *evaluate)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1] == "error: cannot write to stdout (Bad file descriptor)"
    for arguments in (evaluate[:-1], ("train", "--help")):
        status, out, err = shell(">/dev/full", *arguments)
        assert (status, out) == (2, "")
        assert err.splitlines()[-1] == "error: cannot write to stdout (No space left on device)"
        assert "Traceback" not in err


def test_letters_that_a_terminal_does_not_have(shell, few_digits, tmp_path):
    """A training in a folder whose name the locale's encoding lacks, with a state that C++ libraries write there."""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "XDG_CACHE_HOME": str(tmp_path / "hömé")}
    arguments = ("--model", "MLP", "--epochs", "1", "--data-dir", few_digits, "--output", "rüns")
    status, out, err = shell("", "train", *arguments, **plain)
    assert status == 0, err
    assert "weights:  r\\xfcns/MLP-original.safetensors" in out
    assert sorted(p.name for p in (tmp_path / "rüns").iterdir()) == ["MLP-original.png", "MLP-original.safetensors"]


def test_ctrl_c_during_imports(command, tmp_path):
    # The device line comes after all imports; the interpreter's own start takes a small part of a second.
    process = command("train", "--model", "MLP", cwd=tmp_path, prefix=("env", "PYTHONVERBOSE=1"))
    assert any("import 'mnist_jax.startup'" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "interrupted" in err


@pytest.mark.parametrize("module", ["train", "evaluate", "attack"])
def test_a_process_that_refuses_its_input_says_so_in_one_line(run, tmp_path, module):
    status, out, err = run(module, "--nonsense", cwd=tmp_path)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("error: ")
