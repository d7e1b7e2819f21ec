"""Help, version, completion, and what happens to misspelled command lines."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import click
import pytest

import graphopt
from graphopt.cli import cli

if TYPE_CHECKING:
    from .conftest import Run

VERBS = [
    "optimize", "quantize", "prune", "run", "inspect", "verify", "bench", "check", "export",
    "passes", "bisect", "doctor",
]  # fmt: skip
HEAVY = {"onnx", "onnx_ir", "onnxruntime", "numpy", "rich", "networkx"}


def test_help_lists_the_verbs(run: Run) -> None:
    done = run("--help")
    assert done.code == 0
    commands = done.out.split("Commands:\n")[1].split("\n\n")[0]
    assert [line.split()[0] for line in commands.splitlines()] == VERBS
    assert run("-h") == done


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(run: Run, verb: str) -> None:
    done = run(verb, "--help")
    assert done.code == 0
    assert done.out.startswith(f"Usage: graphopt {verb}")
    command = cli.get_command(cli.make_context("graphopt", [verb]), verb)
    assert command is not None
    assert all(p.help for p in command.params if isinstance(p, click.Option))


def test_version(run: Run) -> None:
    assert run("--version").out == f"graphopt, version {graphopt.__version__}\n"


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], *([v, "--help"] for v in VERBS)])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"import sys; from graphopt.cli import main; assert main({arguments}) == 0; "
        "print(*{m.partition('.')[0] for m in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stderr.split()) & HEAVY == set()


def test_help_is_fast() -> None:
    def seconds() -> float:
        before = os.times()
        subprocess.run(
            [sys.executable, "-m", "graphopt", "--help"], check=True, stdout=subprocess.DEVNULL
        )
        after = os.times()
        used = after.children_user - before.children_user
        return used + after.children_system - before.children_system

    # The best of several: a loaded machine makes caches cold, and CPU time longer.
    assert min(seconds() for _ in range(6)) < 0.12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optmize"], "no such command 'optmize'; did you mean 'optimize'?"),
        (["zzz"], "no such command 'zzz'"),
        (["a.onnx"], "no such command 'a.onnx'; did you mean 'graphopt optimize a.onnx'?"),
        (["a.toml"], "no such command 'a.toml'; did you mean 'graphopt run a.toml'?"),
        (["--vrsion"], "no such option '--vrsion'; did you mean '--version'?"),
        (["--zzz"], "no such option '--zzz'"),
        (["optimize", "a", "-o", "b", "--pases", "x"], "no such option '--pases'; did you mean "
         "'--passes'?"),
        (["optimize", "a"], "missing option '-o' / '--output'"),
        (["optimize"], "missing argument 'MODEL'"),
        (["verify", "a"], "missing argument 'B'"),
        (["optimize", "a", "-o", "b", "-O7"], "invalid value for '-O': 7 is not in the range "
         "0<=x<=3"),
        (["optimize", "a", "-o", "b", "--oracle", "ech"], "invalid value for '--oracle': 'ech' is "
         "not one of 'each', 'end', 'off'"),
        (["optimize", "a", "-o", "b", "-O1", "--passes", "x"],
         "-O, --passes and --config exclude each other"),
    ],
)  # fmt: skip
def test_usage_errors_are_one_line(run: Run, arguments: list[str], message: str) -> None:
    done = run(*arguments)
    verb = f" {arguments[0]}" if arguments[0] in VERBS else ""
    assert done.err == f"error: {message}\ntry 'graphopt{verb} --help'\n"
    assert (done.code, done.out) == (2, "")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("graphopt op", ["optimize"]),
        ("graphopt b", ["bench", "bisect"]),
        ("graphopt optimize --or", ["--oracle"]),
        ("graphopt optimize --oracle e", ["each", "end"]),
    ],
)
def test_completion(line: str, found: list[str]) -> None:
    """What the epilog of --help promises."""
    environment = {
        **os.environ,
        "_GRAPHOPT_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(line.count(" ")),
    }
    code = "import sys; from graphopt.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == [f"plain,{each}" for each in found]
