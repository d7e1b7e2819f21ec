"""Dump, reproducer, bisect, and custom observers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graphopt import (
    Const,
    Dump,
    Instrument,
    Match,
    Op,
    Pass,
    PassFailed,
    PassManager,
    Pipeline,
    Replacement,
    Report,
    Reproducer,
    RewritePass,
    Rewriter,
    Var,
    bisect,
    ir,
    rule,
)
from graphopt.errors import SessionError
from graphopt.manager.report import PassRecord

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
x, c = Var(), Const()


@rule(Op("Identity", x))
def drop(m: Match, rw: Rewriter) -> Replacement:
    return m[x]


@rule(Op("Elu", x, alpha=2.0))
def wrong(m: Match, rw: Rewriter) -> Replacement:
    return rw.op("Elu", m[x], alpha=1.0)


class Drop(RewritePass):
    """Drop Identity."""

    name = "drop"
    rules = (drop,)


class Mixed(RewritePass):
    """One right rule and one wrong one."""

    name = "mixed"
    rules = (drop, wrong)


def chain(n: int, bad: int) -> ir.Model:
    body = " ".join(
        f"t{i + 1} = Elu<alpha=2.0>(t{i})" if i == bad else f"t{i + 1} = Identity(t{i})"
        for i in range(n)
    )
    return ir.parse_text(f"{HEAD}g (float[4] t0) => (float[4] y) {{ {body} y = Tanh(t{n}) }}")


def test_bisect_names_the_guilty_rewrite() -> None:
    found = bisect(chain(100, bad=63), Pipeline(passes=(Drop(), Mixed())))
    assert found.action == "wrong at %t64"
    assert found.index == found.actions - 1 or found.index <= found.actions
    assert found.runs <= 12
    assert "differ" in (found.reason or "") or found.reason


def test_bisect_of_a_good_pipeline() -> None:
    found = bisect(chain(5, bad=2), Drop())
    assert found.action is None
    assert found.runs == 1


def test_bisect_needs_a_model_that_runs() -> None:
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["" : 17, "my" : 1]>\n'
        "g (float[2] a) => (float[2] y) { y = my.Op(a) }"
    )
    with pytest.raises(SessionError, match="cannot be compared"):
        bisect(model, Drop())


def test_dump_writes_what_changed(tmp_path: Path) -> None:
    (tmp_path / "007_old.txt").write_text("from an earlier run")
    (tmp_path / "notes.txt").write_text("mine")
    result = PassManager(Pipeline(passes=(Drop(), Drop())), instruments=(Dump(tmp_path),)).run(
        chain(3, bad=9)
    )
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["000_input.txt", "001_drop.txt", "notes.txt"]
    assert (tmp_path / "001_drop.txt").read_text() == ir.dump(result.model)


class Boom(Pass):
    """A pass with a bug."""

    name = "boom"

    def run(self, model: ir.Model, ctx: object) -> bool:
        raise ValueError("boom")


def test_reproducer_holds_what_is_needed(tmp_path: Path) -> None:
    folder = tmp_path / "repro"
    model = chain(3, bad=9)
    with pytest.raises(PassFailed) as caught:
        PassManager(
            Pipeline(passes=(Drop(), Boom())),
            on_mismatch="raise",
            instruments=(Reproducer(folder),),
        ).run(model)
    assert caught.value.reproducer == str(folder)
    assert (folder / "pipeline.txt").read_text() == "drop,boom\n"
    assert "ValueError: boom" in (folder / "traceback.txt").read_text()
    assert "onnx" in json.loads((folder / "versions.json").read_text())
    assert ir.dump(ir.load(folder / "input.onnx")) == ir.dump(model)
    assert "Tanh" in (folder / "after.txt").read_text()
    done = subprocess.run(
        [sys.executable, folder / "repro.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "no pass is called 'drop'" in done.stderr  # these passes exist only in this test


def test_reproducer_writes_nothing_when_all_is_well(tmp_path: Path) -> None:
    folder = tmp_path / "repro"
    PassManager(Drop(), instruments=(Reproducer(folder),)).run(chain(3, bad=9))
    assert not folder.exists()


def test_an_instrument_sees_and_keeps_things_from_happening() -> None:
    class Watch(Instrument):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def should_run(self, action: str) -> bool:
            self.seen.append(action)
            return action != "drop at %t2"

        def after_pass(self, each: Pass, model: ir.Model, record: PassRecord) -> None:
            self.seen.append(f"after {each}: {record.status}")

        def after_run(self, report: Report) -> None:
            self.seen.append("done")

    watch = Watch()
    result = PassManager(Drop(), instruments=(watch,)).run(chain(3, bad=9))
    assert watch.seen == ["pass drop", "drop at %t1", "drop at %t2", "after drop: ok", "done"]
    assert len(list(result.model.graph)) == 3


def test_reproducer_keeps_samples_and_options(tmp_path: Path) -> None:
    samples = tmp_path / "samples.npz"
    np.savez(samples, t0=np.zeros((2, 4), np.float32))
    folder = tmp_path / "repro"
    keeper = Reproducer(folder, data=samples, seeds=(5,), target="cpu-x64")
    PassManager(Boom(), instruments=(keeper,)).run(chain(3, bad=9))
    script = (folder / "repro.py").read_text()
    assert "seeds=(5,)" in script
    assert "target='cpu-x64'" in script
    assert (folder / "data.npz").read_bytes() == samples.read_bytes()
    compile(script, "repro.py", "exec")
