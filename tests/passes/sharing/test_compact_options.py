"""What compact-storage may lose, leaves out and reports, and integers."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import Context, Exactness, PassManager, ir, parse, targets
from graphopt.errors import PipelineSyntaxError
from graphopt.passes.sharing import CompactStorage
from graphopt.testing import check_pass

Array = np.ndarray[Any, Any]


def product(**weights: Array) -> ir.Model:
    """A MatMul by each of the weights."""
    shapes = {name: list(weight.shape) for name, weight in weights.items()}
    rows = next(iter(shapes.values()))[0]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", name], [f"y_{name}"]) for name in weights],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", rows])],
        [
            helper.make_tensor_value_info(f"y_{name}", TensorProto.FLOAT, ["n", shape[1]])
            for name, shape in shapes.items()
        ],
        [numpy_helper.from_array(weight, name) for name, weight in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    return ir.load(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def few(*shape: int, entries: int = 16) -> Array:
    rng = np.random.default_rng(1)
    return normal(entries)[rng.integers(0, entries, shape)]


def run(each: CompactStorage, model: ir.Model) -> Any:
    return PassManager(each, objective=None, oracle="each", on_mismatch="raise").run(model)


@pytest.mark.parametrize(
    ("tolerance", "bits", "code"),
    [(0.0, 32, None), (1e-3, 16, "float16"), (0.02, 8, "book"), (0.1, 5.4, "book")],
)
def test_tolerance(tolerance: float, bits: float, code: str | None) -> None:
    model = product(w=normal(128, 64))
    result = run(CompactStorage(tolerance=tolerance), model)
    rows = result.report.passes[0].details.get("constants", [])
    assert [row["code"].split()[0] for row in rows] == ([] if code is None else [code])
    assert ir.nbytes(result.model) == pytest.approx(128 * 64 * bits / 8, rel=0.2)
    assert all(0 < row["lost"] <= tolerance for row in rows)
    if code is not None:
        assert any("lost most by rounding" in each for each in result.report.passes[0].remarks)


def test_tolerance_keeps_zeros_and_takes_what_needs_none() -> None:
    weight = normal(128, 64)
    weight[np.random.default_rng(2).random(weight.shape) < 0.5] = 0
    result = run(CompactStorage(tolerance=0.02), product(w=weight, v=few(128, 64)))
    codes = {row["name"]: row for row in result.report.passes[0].details["constants"]}
    assert codes["w"]["code"].startswith("bits, book of ")
    assert codes["w"]["lost"] > 0
    assert codes["v"]["code"] == "book of 16"
    assert codes["v"]["lost"] == 0


def test_infinite_numbers_are_not_rounded() -> None:
    weight = normal(128, 64)
    weight[3, 4] = np.inf
    check_pass(CompactStorage(tolerance=0.1), product(w=weight), None, numbers=False)


def test_a_pass_that_may_lose_says_so() -> None:
    assert CompactStorage().exactness is Exactness.BITWISE
    assert CompactStorage(tolerance=0.1).exactness is Exactness.LOSSY
    assert CompactStorage.exactness is Exactness.BITWISE
    assert parse("compact-storage{tolerance=0.1}").promise is Exactness.LOSSY


@pytest.mark.parametrize("value", ["-0.1", "1", "2"])
def test_tolerance_is_a_share(value: str) -> None:
    with pytest.raises(PipelineSyntaxError, match=r"tolerance is a share, in \[0, 1\), not"):
        parse(f"compact-storage{{tolerance={value}}}")


def test_skip() -> None:
    model = product(head=few(64, 64), body=few(64, 32))
    result = run(CompactStorage(skip=("he*", "tail")), model)
    report = result.report.passes[0]
    assert [row["name"] for row in report.details["constants"]] == ["body"]
    assert report.declined == {"code: skip names it": 1}
    assert any("no constant's name matches 'tail'" in each for each in report.remarks)
    assert "head" in result.model.graph.initializers


def test_dry() -> None:
    model = product(w=few(64, 64))
    result = check_pass(CompactStorage(dry=True), model, None)
    assert [row["code"] for row in result.report.passes[0].details["constants"]] == ["book of 16"]


def test_report() -> None:
    model = product(w=few(64, 64), v=np.full((64, 64), 0.5, np.float32), u=normal(64, 64))
    report = run(CompactStorage(), model).report.passes[0]
    rows = {row["name"]: row for row in report.details["constants"]}
    assert set(rows) == {"w", "v"}
    assert rows["w"]["bytes_before"] == 4 * 64 * 64
    assert rows["w"]["bytes_after"] == 64 * 64 / 2 + 4 * 16
    assert rows["v"]["bytes_after"] == 2
    assert rows["w"]["deflated_after"] < rows["w"]["deflated_before"] < 4 * 64 * 64
    assert report.details["codes"] == {"books": 1, "repeated float16": 1}
    for key in ("bytes_before", "bytes_after", "deflated_before", "deflated_after"):
        assert report.details[key] == sum(row[key] for row in rows.values())
    (said,) = report.remarks
    assert said.startswith("2 constants take 2,114 bytes instead of 32,768 (deflated ")
    plain = run(CompactStorage(deflate=False), model).report.passes[0]
    assert "deflated_after" not in plain.details
    assert "deflated" not in plain.remarks[0]


def test_codes_are_not_coded_again() -> None:
    weight = few(128, 64)
    weight[np.random.default_rng(2).random(weight.shape) < 0.5] = 0
    once = run(CompactStorage(), product(w=weight, v=few(128, 64, entries=300)))
    check_pass(CompactStorage(), once.model, None, numbers=False)


def test_one_constant_in_memory_at_a_time(tmp_path: Path) -> None:
    many, each = 24, few(512, 512)
    whole = product(**{f"w{i}": np.roll(each, i) for i in range(many)})
    onnx.save(
        onnx.load_from_string(ir.to_bytes(whole)), tmp_path / "large.onnx",
        save_as_external_data=True, location="large.data", size_threshold=0,
    )  # fmt: skip
    model = ir.load(tmp_path / "large.onnx")
    tracemalloc.start()
    try:
        assert CompactStorage().run(model, Context(model, targets.get("cpu")))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert ir.nbytes(model) < 0.13 * many * each.nbytes
    assert peak < (0.13 * many + 5) * each.nbytes


def integer_model(kind: str, weight: Array) -> ir.Model:
    """A convolution of 8-bit weights: in Q/DQ form, on integers, or of dequantized weights."""
    nodes = {
        "qdq": [
            ("DequantizeLinear", ["xq", "xs", "xz"], "xd"),
            ("DequantizeLinear", ["w", "ws", "wz"], "wd"),
            ("Conv", ["xd", "wd"], "c"),
            ("QuantizeLinear", ["c", "xs", "xz"], "cq"),
            ("DequantizeLinear", ["cq", "xs", "xz"], "y"),
        ],
        "qlinear": [
            ("QLinearConv", ["xq", "xs", "xz", "w", "ws", "wz", "xs", "xz"], "cq"),
            ("DequantizeLinear", ["cq", "xs", "xz"], "y"),
        ],
        "integer": [("ConvInteger", ["xq", "w", "xz", "wz"], "ci"), ("Cast", ["ci"], "y")],
        "weight": [
            ("DequantizeLinear", ["w", "ws", "wz"], "wd"),
            ("DequantizeLinear", ["xq", "xs", "xz"], "xd"),
            ("Conv", ["xd", "wd"], "y"),
        ],
    }[kind]
    made = [helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"])]
    for operator, inputs, output in nodes:
        extra = {"to": TensorProto.FLOAT} if operator == "Cast" else {}
        made.append(helper.make_node(operator, inputs, [output], **extra))
    given = {
        "w": weight, "ws": np.float32(0.01), "wz": np.int8(0), "xs": np.float32(0.02),
        "xz": np.uint8(128),
    }  # fmt: skip
    used = {name for node in made for name in node.input}
    graph = helper.make_graph(
        made, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, weight.shape[1], 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in given.items() if name in used],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17)]
    return ir.load(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def loaded(model: ir.Model, path: Path) -> tuple[Counter[str], bytes]:
    """The operators that ONNX Runtime makes of a model, and what they compute."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path)
    session = ort.InferenceSession(ir.to_bytes(model), options, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": normal(1, 16, 8, 8)})
    return Counter(n.op_type for n in onnx.load(path).graph.node), y.tobytes()


@pytest.mark.parametrize("kind", ["qdq", "qlinear", "integer", "weight"])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.05])
def test_integer_weights_are_decoded_at_load(kind: str, share: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (32, 16, 3, 3)).astype(np.int8)
    weight = weight // 16 * 16 if share == 1 else weight
    weight = (weight * (rng.random(weight.shape) < share)).astype(np.int8)
    model = integer_model(kind, weight)
    result = run(CompactStorage(), model)
    assert result.report.changed
    assert loaded(result.model, tmp_path / "coded.onnx") == loaded(model, tmp_path / "plain.onnx")
