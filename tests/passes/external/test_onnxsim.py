from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import PassManager, PipelineSyntaxError, Result, ir, parse
from graphopt.manager.registry import Registry
from graphopt.passes.external import Onnxsim, onnxsim_pass, onnxsim_worker

SOURCE = """
    <ir_version: 8, opset_import: ["": 17]>
    g (float[N,2] x, float[2] b = {5, 6}) => (float[N,2] y) <float[2] k = {1,2}, float[2] l = {3,4}>
    { t = Mul(x, k) u = Add(t, b) v = Mul(l, k) y = Add(u, v) }
"""

FakeWorker = Callable[[str], None]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeWorker:
    """Let the pass start another program; it finds its folder in ``folder`` and imports onnx."""
    script = tmp_path / "worker.py"
    monkeypatch.setattr(onnxsim_pass, "_WORKER", script)

    def write(body: str) -> None:
        head = """
            import json, os, signal, sys, time
            from pathlib import Path
            import onnx
            folder = Path(sys.argv[1])
            def done(proto, **options):
                onnx.save(proto, folder / "result.onnx", **options)
                (folder / "status.json").write_text("{}")
            def source():
                return onnx.load(folder / "model.onnx")
        """
        script.write_text(textwrap.dedent(head) + textwrap.dedent(body), encoding="utf-8")

    return write


def run(pass_: Onnxsim | None = None, text: str = SOURCE) -> Result:
    return PassManager(pass_ or Onnxsim(), oracle="each", on_mismatch="raise", objective=None).run(
        ir.parse_text(text)
    )


def remark(result: Result) -> str:
    """What the report says of a run that changed nothing."""
    assert not result.report.changed
    assert result.report.passes[0].status == "unchanged"
    (found,) = result.report.passes[0].remarks
    before = "onnxsim left the model as it was: "
    assert found.startswith(before)
    return found.removeprefix(before)


# The real thing


def batch_norm() -> ir.Model:
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((4, 2, 3, 3)),
        **{n: rng.random(4) + 0.5 for n in ("scale", "bias", "mean", "var")},
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "scale", "bias", "mean", "var"], ["b"]),
        helper.make_node("Identity", ["b"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 6, 6])],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()],
    )
    return ir.load(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )


def test_simplifies(capfd: pytest.CaptureFixture[str]) -> None:
    model = batch_norm()
    text = ir.dump(model)
    manager = PassManager(Onnxsim(), oracle="each", on_mismatch="raise")
    result = manager.run(model)
    record = result.report.passes[0]
    assert record.remarks == []
    assert record.rewrites == {"simplify": 1}
    assert result.report.oracle["verdict"] == "equal"
    assert [node.op_type for node in result.model.graph] == ["Conv", "Relu"]
    assert ir.to_proto(result.model).graph.input == ir.to_proto(model).graph.input
    assert ir.to_proto(result.model).graph.output == ir.to_proto(model).graph.output
    ir.verify(result.model)
    ir.check(model, result.model)
    assert ir.dump(model) == text
    again = manager.run(result.model)
    assert not again.report.changed
    assert again.report.passes[0].remarks == []
    assert capfd.readouterr() == ("", "")


def test_known_mistakes_are_kept_from_it() -> None:
    """A literal -1 in a shape, a default value, a contrib operator without import."""
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[7,7] x, float k = {2}) => (float[A,B] y)
        {
            s = Shape(x)
            m = ReduceMax<keepdims = 0>(s)
            n = ReduceMin<keepdims = 0>(s)
            c = Equal(m, n)
            d = Mul(k, k)
            e = Identity(x)
            z = If (c) <
                then_branch = t () => (float[A,B] p) { p = Mul(e, d) },
                else_branch = f () => (float[C,D] r) { r = Neg(e) }
            >
            y = com.microsoft.Gelu(z)
        }
    """)
    for dim in proto.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_value = -1
    model = ir.load(proto)
    result = PassManager(Onnxsim(), oracle="each", on_mismatch="raise", objective=None).run(model)
    assert result.report.passes[0].remarks == []
    assert result.report.passes[0].rewrites == {"simplify": 1}
    assert result.report.oracle["verdict"] == "equal"
    ops = [node.op_type for node in result.model.graph]
    assert "If" in ops, "which branch it is depends on the input"
    assert "Identity" not in ops
    assert [i.name for i in ir.inputs(result.model)] == ["x"]
    out = ir.to_proto(result.model)
    assert out.graph.input == proto.graph.input
    k = next(t for t in out.graph.initializer if t.name == "k")
    assert numpy_helper.to_array(k) == 2
    assert any(n.op_type == "Mul" and list(n.input) == ["k", "k"] for n in out.graph.node)


def test_constants_do_not_explode() -> None:
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[1] x) => (float[1000] y) <int64[1] s = {1000}>
        { k = ConstantOfShape<value = float[1] {2.0}>(s) t = Identity(x) y = Mul(t, k) }
    """
    result = run(Onnxsim(max_tensor_bytes=1000), text)
    assert [n.op_type for n in result.model.graph] == ["ConstantOfShape", "Mul"]
    assert result.report.after.bytes <= result.report.before.bytes


# What can go wrong


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "it crashed (SIGSEGV)"),
        ("print('oh'); sys.exit('no luck')", "it ended with status 1: no luck"),
        ("pass", "it ended with status 0: no output"),
        ("raise ValueError('bad')", "it ended with status 1: ValueError: bad"),
        (
            "(folder / 'status.json').write_text(json.dumps({'error': 'RuntimeError: sorted'}))",
            "RuntimeError: sorted",
        ),
        ("(folder / 'status.json').write_text('{}')", "result.onnx does not exist"),
        (
            "(folder / 'result.onnx').write_bytes(b'\\x08'); "
            "(folder / 'status.json').write_text('{}')",
            "is not an ONNX model",
        ),
        ("p = source(); del p.graph.node[0]; done(p)", "used before or outside its definition"),
        ("p = source(); p.graph.input[0].name = p.graph.node[0].input[0] = 'z'; done(p)", "inputs"),
        (
            "p = source(); p.graph.output[0].name = p.graph.node[3].output[0] = 'z'; done(p)",
            "outputs",
        ),
        ("p = source(); del p.graph.input[1]; done(p)", "inputs"),
        (
            "p = source(); del p.graph.initializer[:]; "
            "p.graph.node[2].input[0] = p.graph.node[2].input[1] = 'b'; "
            "p.graph.node[0].input[1] = 'b'; done(p)",
            "%b lost its default value",
        ),
        (
            "p = source(); p.graph.input[0].type.tensor_type.elem_type = 11; done(p)",
            "%x is DOUBLE in its result, not FLOAT",
        ),
    ],
)
def test_failures_are_remarks(fake: FakeWorker, body: str, why: str) -> None:
    fake(body)
    assert why in remark(run())


def test_timeout(fake: FakeWorker) -> None:
    fake("time.sleep(60)")
    assert remark(run(Onnxsim(timeout=0.2))) == "it did not finish in 0.2 s"


def test_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ir, "save", full)
    assert "No space left" in remark(run())


def test_wrong_numbers_are_the_managers_business(fake: FakeWorker) -> None:
    fake("p = source(); p.graph.node[0].op_type = 'Div'; done(p)")
    result = PassManager(Onnxsim(), oracle="each").run(ir.parse_text(SOURCE))
    assert result.report.passes[0].status == "reverted"
    assert not result.report.changed


def test_nothing_simplified(fake: FakeWorker) -> None:
    fake("done(source())")
    result = run()
    assert not result.report.changed
    assert result.report.passes[0].remarks == []


def test_only_a_weight_changed(fake: FakeWorker) -> None:
    fake("p = source(); t = p.graph.initializer[1]; t.float_data[:] = [9, 9]; done(p)")
    result = PassManager(Onnxsim(), objective=None).run(ir.parse_text(SOURCE))
    assert result.report.passes[0].rewrites == {"simplify": 1}


def test_fuel(fake: FakeWorker) -> None:
    fake("p = source(); p.graph.node[0].op_type = 'Div'; done(p)")
    for fuel, changed in ((1, False), (2, True)):
        manager = PassManager(Onnxsim(), objective=None, fuel=fuel)
        assert manager.run(ir.parse_text(SOURCE)).report.changed is changed


def test_weights_are_shared_and_no_file_is_needed(
    fake: FakeWorker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Large models travel with their weights beside them; the folder is gone afterwards."""
    monkeypatch.setattr(onnxsim_pass, "_INLINE_BYTES", 0)
    fake("""
        p = onnx.load(folder / "model.onnx", load_external_data=False)
        assert any(t.external_data for t in p.graph.initializer)
        p = source()
        changed = next(t for t in p.graph.initializer if t.name == "w1")
        data = onnx.numpy_helper.to_array(changed) + 1
        changed.CopyFrom(onnx.numpy_helper.from_array(data, "w2"))
        p.graph.node[1].input[1] = "w2"
        done(p, save_as_external_data=True, location="result.data", size_threshold=0)
    """)
    weights = np.random.default_rng(0).standard_normal((2, 40, 40)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w0"], ["a"]),
            helper.make_node("MatMul", ["a", "w1"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 40])],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, tmp_path / "in.onnx", save_as_external_data=True, size_threshold=0)
    model = ir.load(tmp_path / "in.onnx")
    result = PassManager(Onnxsim(), objective=None).run(model)
    assert result.report.passes[0].remarks == []
    kept = result.model.graph.initializers
    assert sorted(kept) == ["w0", "w2"]
    assert kept["w0"].const_value is model.graph.initializers["w0"].const_value
    for external in (False, True):
        ir.save(result.model, tmp_path / "out.onnx", external_data=external)
        back = ir.load(tmp_path / "out.onnx")
        found = ir.array(back.graph.initializers["w2"])
        assert found is not None
        np.testing.assert_array_equal(found, weights[1] + 1)


# The program it starts


def test_prepare_and_restore() -> None:
    proto = ir.to_proto(ir.parse_text(SOURCE))
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    declared = [i.name for i in proto.graph.input]
    defaults = onnxsim_worker.prepare(proto)
    assert [t.name for t in defaults] == ["b"]
    assert [i.name for i in proto.graph.input] == declared
    assert {t.name for t in proto.graph.initializer} == {"k", "l"}
    assert not proto.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")
    assert proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value == 2
    assert {o.domain for o in proto.opset_import} == {"", "com.microsoft"}
    assert onnxsim_worker.prepare(proto) == []
    onnxsim_worker.restore(proto, defaults)
    onnx.checker.check_model(proto)
    assert {t.name for t in proto.graph.initializer} == {"k", "l", "b"}


@pytest.mark.parametrize("package", ["onnxsim", "onnxruntime"])
def test_package_is_missing(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        onnxsim_worker.importlib.util, "find_spec", lambda name: None if name == package else name
    )
    onnxsim_worker.main(tmp_path)
    status = json.loads((tmp_path / "status.json").read_text())
    assert status == {"error": f"{package} is not installed"}


def test_worker_reports_exceptions(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\xff\xff")
    onnxsim_worker.main(tmp_path)
    assert "DecodeError" in json.loads((tmp_path / "status.json").read_text())["error"]


def test_no_folder_is_left_behind(
    fake: FakeWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", os.fspath(tmp_path / "scratch"))
    fake("done(source())")
    run()
    assert list((tmp_path / "scratch").iterdir()) == []


def test_options() -> None:
    registry = Registry()
    registry.register(Onnxsim)
    text = "onnxsim{max-tensor-bytes=1024 subgraphs skip=fuse_bn_into_conv,eliminate_identity}"
    assert str(parse(text, registry).passes[0]) == text  # type: ignore[attr-defined]
    for wrong in ("timeout=0", "max-tensor-bytes=-1"):
        with pytest.raises(PipelineSyntaxError, match="must be"):
            parse(f"onnxsim{{{wrong}}}", registry)
