"""What the tests of the command line share: runs in this process and in others, toy passes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import graphopt
from graphopt import (
    Context,
    Exactness,
    Match,
    NotApplicable,
    Op,
    Pass,
    RewritePass,
    Rewriter,
    Var,
    ir,
    rule,
)
from graphopt.cli import main
from graphopt.manager.registry import default_registry

x = Var()


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of whoever runs the tests decides nothing."""
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "GRAPHOPT_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line in this process."""

    def call(*arguments: object) -> Done:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        return Done(code, *capsys.readouterr())

    return call


@pytest.fixture
def spawn() -> Run:
    """Runs a command line in a process of its own."""

    def call(*arguments: object, **options: object) -> Done:
        done: subprocess.CompletedProcess[str] = subprocess.run(  # type: ignore[call-overload]
            [sys.executable, "-m", "graphopt", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=60,
            **options,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def resnet(models_dir: Path) -> Path:
    """A model with something to do for most passes."""
    return models_dir / "digits_resnet.onnx"


@pytest.fixture
def samples(models_dir: Path) -> Path:
    """Samples of its input."""
    return models_dir / "digits_calib.npz"


@pytest.fixture(scope="session")
def few(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few samples of the reference models."""
    path = tmp_path_factory.mktemp("few") / "few.npz"
    with np.load(models_dir / "digits_calib.npz") as data:
        np.savez(path, **{name: data[name][:24] for name in data.files})
    return path


@rule(Op("Relu", x))
def relu_to_sigmoid(m: Match, rw: Rewriter) -> ir.Value:
    return rw.op("Sigmoid", m[x])


class WrongRelu(RewritePass):
    """Deliberately wrong."""

    name = "wrong-relu"
    exactness = Exactness.ROUNDING
    rules = (relu_to_sigmoid,)


class Raises(Pass):
    """Has a bug."""

    name = "raises"

    def run(self, model: ir.Model, ctx: Context) -> bool:
        raise KeyError("lost")


class NeedsData(Pass):
    """Needs what is not there."""

    name = "needs-data"

    def run(self, model: ir.Model, ctx: Context) -> bool:
        if ctx.data is None:
            raise NotApplicable("needs calibration data")
        for batch in ctx.data:
            ctx.remark(f"a batch of {len(batch['image'])}")
        return False


@pytest.fixture
def toys() -> Iterator[None]:
    """Registers toy passes, in a registry that is gone afterwards."""
    default_registry.cache_clear()
    for each in (WrongRelu, Raises, NeedsData):
        graphopt.register(each)
    yield
    default_registry.cache_clear()


@pytest.fixture
def slow_pass(tmp_path: Path) -> dict[str, str]:
    """An environment with a distribution installed that brings a pass which takes forever."""
    site = tmp_path / "site"
    info = site / "slow-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[graphopt.passes]\nslow = slow_plugin\n")
    (site / "slow_plugin.py").write_text(SLOW)
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


SLOW = '''
import pathlib, time
from graphopt import Pass

class Slow(Pass):
    """Says that it began, and takes forever."""
    name = "slow"
    def run(self, model, ctx):
        pathlib.Path("began").touch()
        time.sleep(60)

PASSES = (Slow,)
'''
