"""``graphopt.load``, ``optimize``, ``save``, ``verify`` and ``bench`` as Python users call them."""

from __future__ import annotations

import doctest
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest

import graphopt
from graphopt import api, compressing, ir
from graphopt.manager.report import Report

MODEL = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,3] a) => (float[N,3] y) <float[3] k = {1,2,3}> {
  p = Identity(a)  q = Relu(p)  y = Add(q, k)
}"""


@pytest.fixture
def model() -> ir.Model:
    return ir.parse_text(MODEL)


@pytest.fixture
def wrong() -> ir.Model:
    return ir.parse_text(MODEL.replace("Relu", "Abs"))


def test_examples_in_docstrings(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    found = doctest.testmod(api)
    assert found.failed == 0
    assert found.attempted >= 12
    found = doctest.testmod(compressing)
    assert found.failed == 0
    assert found.attempted >= 3
    for name in ("optimize", "quantize", "prune", "save", "verify", "bench"):
        assert ">>>" in (getattr(graphopt, name).__doc__ or ""), name


def test_everything_that_loads(model: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    graphopt.save(model, path)
    proto = onnx.load(path)
    before = proto.SerializeToString()
    sources: list[Any] = [
        path,
        str(path),
        path.read_bytes(),
        bytearray(path.read_bytes()),
        proto,
        onnx_ir.from_proto(proto),
    ]
    texts = {ir.dump(graphopt.load(source)) for source in sources}
    assert texts == {ir.dump(model)}
    for source in sources:
        result = graphopt.optimize(source, "cleanup")
        assert result.report.after.nodes == 2
    assert proto.SerializeToString() == before
    with pytest.raises(graphopt.FrontendError, match="cannot load int: expected a path"):
        graphopt.load(3)


def test_optimize_leaves_its_input_alone(model: ir.Model) -> None:
    text = ir.dump(model)
    result = graphopt.optimize(model, "cleanup")
    assert ir.dump(model) == text
    assert result.model is not model
    assert isinstance(result.report, Report)
    assert result.report.changed
    assert result.report.oracle["promise"] == "bitwise"


def test_optimize_takes_pipelines_in_every_spelling(model: ir.Model) -> None:
    texts = {
        ir.dump(graphopt.optimize(model, pipeline).model)
        for pipeline in ("eliminate-identity", graphopt.parse("eliminate-identity"), Drop())
    }
    assert len(texts) == 1


x = graphopt.Var()


@graphopt.rule(graphopt.Op("Identity", x))
def drop(m: graphopt.Match, rw: graphopt.Rewriter) -> ir.Value:
    return m[x]


class Drop(graphopt.RewritePass):
    """Drop Identity."""

    name = "drop"
    exactness = graphopt.Exactness.BITWISE
    rules = (drop,)


@graphopt.rule(graphopt.Op("Relu", x))
def relu_to_abs(m: graphopt.Match, rw: graphopt.Rewriter) -> ir.Value:
    return rw.op("Abs", m[x])


class Wrong(graphopt.RewritePass):
    """Deliberately wrong."""

    name = "wrong"
    rules = (relu_to_abs,)


def test_a_wrong_pass_is_undone_or_raises(model: ir.Model) -> None:
    result = graphopt.optimize(model, graphopt.Pipeline(passes=(Drop(), Wrong())))
    assert [record.name for record in result.report.reverted] == ["wrong"]
    assert len(list(result.model.graph)) == 2
    with pytest.raises(graphopt.NumericalMismatch, match=r"^pass wrong changed the numbers: y"):
        graphopt.optimize(model, Wrong(), on_mismatch="raise")
    assert graphopt.optimize(model, Wrong(), oracle="off", objective=None).report.changed


# --- data -----------------------------------------------------------------------------------------


class Repeatable:
    """Batches that are made anew on every reading, as a data loader makes them."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for n in (1, 2, 3):
            yield {"a": np.ones((n, 3), np.float32)}


def batches() -> Iterator[dict[str, Any]]:
    yield from Repeatable()


@pytest.mark.parametrize(
    ("data", "used", "of"),
    [
        (list(batches()), 2, 3),
        (tuple(batches()), 2, 3),
        (batches, 2, 3),
        (Repeatable(), 2, 3),
        ({"a": np.ones((5, 3), np.float32)}, 1, 1),
        ([{"a": np.ones((1, 3))}], 1, 1),
        ([{"a": [[1.0, 2.0, 3.0]]}], 1, 1),
        ([{"a": np.ones((1, 3), np.float32), "label": 3}], 1, 1),
    ],
)
def test_data_in_memory(model: ir.Model, data: Any, used: int, of: int) -> None:
    given = data() if callable(data) else data
    report = graphopt.optimize(model, "cleanup", data=given).report
    feeds = report.oracle["feeds"]
    assert (feeds["samples"], feeds["batches"]) == (used, of)
    everything = data() if callable(data) else data
    assert graphopt.verify(model, model, data=everything, exactness="bitwise").ok


def test_data_is_converted_with_a_remark(model: ir.Model) -> None:
    data = [{"a": np.ones((1, 3)), "label": 3}]
    remarks = graphopt.optimize(model, "cleanup", data=data).report.remarks
    assert remarks == [
        "array 'label' is no input and is not used",
        "input 'a': float64 was converted to float32",
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "the data holds no batches"),
        (iter(()), "the data holds no batches"),
        ([{}], "data, batch 0 has no array for input 'a', it holds nothing"),
        ([{"b": 1}], "data, batch 0 has no array for input 'a', it holds 'b'"),
        ([np.ones((1, 3))], "data, batch 0 is no dict of arrays by input name, but ndarray"),
        ([{"a": np.ones((1, 4), np.float32)}], "data, batch 0: input 'a' takes"),
        ([{"a": np.ones((1, 3), np.int64)}], "data, batch 0: input 'a' takes float32, not int64"),
        ([{"a": np.full((1, 3), np.nan)}], "data, batch 0: input 'a' is nan at"),
        (
            [{"a": np.ones((1, 3), np.float32)}, {"a": np.ones(3, np.float32)}],
            "data, batch 1: input 'a' takes",
        ),
        ("missing.npz", "missing.npz does not exist"),
    ],
)
def test_data_that_does_not_fit(model: ir.Model, data: Any, message: str) -> None:
    with pytest.raises(graphopt.CalibrationError) as raised:
        graphopt.verify(model, model, data=data)
    assert str(raised.value).startswith(message)


def test_data_of_sequences_and_maps() -> None:
    model = ir.parse_text(
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        "g (seq(float[N]) s) => (float[M] y) { y = ConcatFromSequence <axis = 0> (s) }"
    )
    data = [{"s": [np.ones(2, np.float32), np.ones(3, np.float32)]}]
    assert graphopt.verify(model, model, data=data, exactness="bitwise").ok


# --- verify and bench -----------------------------------------------------------------------------


def test_verify(model: ir.Model, wrong: ir.Model) -> None:
    assert graphopt.verify(model, ir.clone(model), exactness="bitwise").ok
    found = graphopt.verify(model, wrong)
    assert not found.ok
    assert found.worst_output == "y"
    assert found.reason is not None
    assert found.reason.startswith("y[0, ")
    # Where the data decide, made-up inputs still catch it.
    assert not graphopt.verify(model, wrong, data={"a": np.ones((1, 3), np.float32)}).ok


def test_verify_uses_as_much_data_as_asked(model: ir.Model, wrong: ir.Model) -> None:
    good, bad = np.ones((1, 3), np.float32), -np.ones((1, 3), np.float32)
    _, oracle = api.judge(
        model, model, data=[{"a": good}, {"a": bad}], exactness="bitwise", seeds=(0,), batches=1
    )
    assert [p.source for p in oracle.probes].count("data") == 1
    assert oracle.feeds_summary["batches"] == 2


def test_verify_refuses_what_cannot_be_compared(model: ir.Model) -> None:
    renamed = ir.parse_text(MODEL.replace("float[N,3] y", "float[N,3] z").replace("y =", "z ="))
    with pytest.raises(graphopt.VerificationError, match="only the first has 'y'"):
        graphopt.verify(model, renamed)
    many = ir.parse_text(
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        "g (float b0, float b1, float b2, float b3, float b4) => (float y) { y = Add(b0, b1) }"
    )
    with pytest.raises(graphopt.VerificationError) as raised:
        graphopt.verify(model, many)
    assert str(raised.value) == (
        "the models have different inputs: only the first has 'a' and only the second has "
        "'b0', 'b1', 'b2' and 2 more"
    )
    with pytest.raises(graphopt.ConfigError, match="'exact' is none of bitwise, rounding, lossy"):
        graphopt.verify(model, model, exactness="exact")


def test_verify_a_model_with_default_inputs_against_one_without() -> None:
    """Which inputs may be left out is no difference in what is computed."""
    text = MODEL.replace("(float[N,3] a)", "(float[N,3] a, float[3] k)")
    assert graphopt.verify(ir.parse_text(text), ir.parse_text(MODEL)).ok


def test_bench(model: ir.Model) -> None:
    found = graphopt.bench(model, model, seconds=0.05, data={"a": np.ones((4, 3), np.float32)})
    assert set(found.timings) == {"a", "b"}
    assert found["a"].median > 0
    with pytest.raises(graphopt.ConfigError, match="there is no target 'gpu'"):
        graphopt.bench(model, model, target="gpu")


# --- save -----------------------------------------------------------------------------------------


def test_save(model: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    assert graphopt.save(model, path) == [path]
    assert graphopt.save(model, str(path)) == [path]
    with pytest.raises(graphopt.ExportError, match="is a directory"):
        graphopt.save(model, tmp_path)
    with pytest.raises(graphopt.ExportError, match="cannot be written: No such file"):
        graphopt.save(model, tmp_path / "no" / "model.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_save_never_replaces_a_device_or_a_pipe(model: ir.Model, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(graphopt.ExportError, match="is not a regular file"):
        graphopt.save(model, pipe)
    assert pipe.is_fifo()
