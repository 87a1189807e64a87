import argparse
import json

import pytest

from mnist_jax.commands import console
from mnist_jax.errors import InputError


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


@pytest.mark.parametrize("module", ["train", "evaluate", "attack"])
def test_a_process_that_refuses_its_input_says_so_in_one_line(run, tmp_path, module):
    status, out, err = run(module, "--nonsense", cwd=tmp_path)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("error: ")
