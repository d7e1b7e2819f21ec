from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import graphopt
from graphopt import PassManager, Result, ir, parse
from graphopt.passes.precision import ConvertFp16
from graphopt.testing import check_pass

FULL, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def text(body: str, opset: int = 17) -> str:
    return f'<ir_version: 8, opset_import: ["": {opset}, "mine": 1]> g {body}'


def convert(body: str, each: ConvertFp16 | None = None, opset: int = 17, **more: object) -> Result:
    manager = PassManager(
        each or ConvertFp16(),
        oracle="each",
        on_mismatch="raise",
        **more,  # type: ignore[arg-type]
    )
    result = manager.run(ir.parse_text(text(body, opset)))
    ir.verify(result.model)
    assert not manager.run(result.model).report.changed
    return result


def ops(result: Result) -> list[str]:
    return [n.op_type for n in ir.all_nodes(result.model)]


def types(result: Result) -> dict[str, ir.DataType | None]:
    """Type by operator of what is no Cast."""
    return {
        n.op_type: n.outputs[0].dtype for n in ir.all_nodes(result.model) if n.op_type != "Cast"
    }


def reasons(result: Result) -> str:
    return "\n".join([*result.report.passes[0].declined, *result.report.passes[0].remarks])


CHAIN = """(float[1,2] x) => (float[1,2] y) <float[2,2] w = {1,2,3,4}, float[2] b = {1,2}>
    { t = MatMul(x, w) u = Add(t, b) y = Relu(u) }"""


def test_a_chain() -> None:
    check_pass(
        ConvertFp16(),
        text(CHAIN),
        """
        graph(%x: float[1,2]) {
          const %b.fp16: float16[2]
          const %w.fp16: float16[2,2]
          %cast.1 = Cast(%x) {to=10}
          %t = MatMul(%cast.1, %w.fp16)
          %u = Add(%t, %b.fp16)
          %y.old = Relu(%u)
          %y = Cast(%y.old) {to=1}
          return %y
        }
        """,
    )


def test_nothing_to_convert() -> None:
    check_pass(ConvertFp16(), text("(int64[2] x) => (int64[2] y) { y = Add(x, x) }"), None)
    check_pass(
        ConvertFp16(), text("(float16[2] x) => (float[2] y) { t = Exp(x) y = Cast<to=1>(t) }"), None
    )


def test_one_conversion_for_all_who_use_a_value() -> None:
    body = """(float[2,2] x) => (float[2,2] a, float[2,2] b, float[2,2] c) {
        p = MatMul(x, x) a = Exp(p) b = Softmax(p) c = MatMul(p, p) }"""
    result = convert(body, ConvertFp16(skip_ops=("Exp", "Softmax")))
    assert ops(result).count("Cast") == 3  # x in; p for Exp and Softmax; c out
    assert types(result) == {"MatMul": HALF, "Exp": FULL, "Softmax": FULL}


@pytest.mark.parametrize("pattern", ["u", "*", "[tu]"])
def test_skip_names(pattern: str) -> None:
    result = convert(CHAIN, ConvertFp16(skip=(pattern,)))
    assert types(result)["Add"] == FULL
    assert result.report.changed is (pattern == "u")
    if result.report.changed:
        assert "skip names it" in reasons(result)


def test_cheap_operators_stay_with_their_neighbours() -> None:
    body = """(float[2,2] x) => (float[2,2] y) <float[2,2] w = {1,2,3,4}> {
        a = MatMul(x, w) b = Softmax(a) c = Relu(b) d = Softmax(c) y = MatMul(d, w) }"""
    result = convert(body, ConvertFp16(skip_ops=("Softmax",)))
    assert types(result) == {"MatMul": HALF, "Softmax": FULL, "Relu": FULL}
    assert ops(result).count("Cast") == 4  # in and out of each product
    alone = "(float[2] x) => (float[2] y) { y = Relu(x) }"
    assert not convert(alone).report.changed


def test_constants_that_do_not_fit() -> None:
    big = """(float[1,2] x) => (float[1,2] y, float[1,2] z)
        <float[2,2] w = {1,2,3,70000}, float[2,2] v = {1,2,3,4}>
        { t = MatMul(x, w) y = Identity(t) z = MatMul(x, v) }"""
    result = convert(big)
    by_name = {n.outputs[0].name: n for n in result.model.graph}
    assert by_name["t"].outputs[0].dtype == FULL
    assert "%w holds 7e+04, beyond 65504" in reasons(result)
    small = """(float[1,2] x) => (float[1,2] y) <float e = {1e-12}, float[2,2] v = {1,2,3,4}>
        { t = MatMul(x, v) s = Mul(t, t) u = Add(s, e) y = Sqrt(u) }"""
    result = convert(small)
    assert types(result)["Add"] == FULL
    assert types(result)["MatMul"] == HALF
    assert "%e holds numbers too small for 16 bits" in reasons(result)


def test_infinity_fits_and_tiny_weights_among_others_do_not_matter() -> None:
    body = """(float[1,2] x) => (float[1,2] y) <float[2,2] w = {1,2,1e-9,4}, float[2] m = {0,0}>
        { t = MatMul(x, w) u = Add(t, m) y = Softmax(u) }"""
    model = ir.parse_text(text(body))
    mask = model.graph.initializers["m"]
    mask.const_value = ir.tensor(np.array([0, -np.inf], np.float32), name="m")
    result = PassManager(ConvertFp16(), oracle="each", on_mismatch="raise").run(model)
    assert types(result) == {"MatMul": HALF, "Add": HALF, "Softmax": HALF}


def test_activations_that_do_not_fit() -> None:
    body = """(float[1,2] x) => (float[1,2] y) <float[2,2] w = {1,2,3,4}> {
        a = MatMul(x, w) b = Mul(a, a) c = Sqrt(b) y = MatMul(c, w) }"""
    data = [{"x": np.array([[100.0, 50.0]], np.float32)}]
    result = convert(body, data=data)
    assert types(result) == {"MatMul": HALF, "Mul": FULL, "Sqrt": FULL}
    assert "%b reaches 1.6e+05, beyond 65504" in reasons(result)
    tame = convert(body, data=[{"x": np.array([[1.0, 0.5]], np.float32)}])
    assert set(types(tame).values()) == {HALF}
    assert "not checked: no samples" in reasons(convert(body))


def test_operators_that_admit_no_halves() -> None:
    body = """(float[1,1,2,2] x, float s) => (float[1,1,4,4] y, float[K] r)
        <float[4] scales = {1,1,2,2}, float[1,1,1,1] w = {2}> {
        t = Conv(x, w) y = Resize<mode="linear">(t, , scales) r = Range(s, s, s) }"""
    result = convert(body)
    resize = next(n for n in result.model.graph if n.op_type == "Resize")
    assert resize.outputs[0].dtype == HALF
    assert resize.inputs[2] is not None
    assert resize.inputs[2].dtype == FULL  # its scales are always 32 bits
    assert types(result)["Range"] == FULL
    assert "Range of this opset does not compute in 16 bits" in reasons(result)


def test_types_that_attributes_decide() -> None:
    body = """(int64[2] n, int64[2,2] i) => (float[2,2] y, float[2,2] z)
        <float[2,2] w = {1,2,3,4}> {
        a = Cast<to=1>(i) y = MatMul(a, w)
        c = ConstantOfShape<value=float[1]{2}>(n) z = MatMul(c, w) }"""
    result = convert(body)
    assert types(result)["ConstantOfShape"] == FULL
    first = next(n for n in result.model.graph if n.op_type == "Cast")
    assert ir.attr(first, "to") == int(HALF)  # from integers to 16 bits at once
    assert "an attribute decides its type" in reasons(result)


def test_operators_that_overflow_on_the_way() -> None:
    body = """(float[2,2] x) => (float[2,2] y) <float[2,2] w = {1,2,3,4}>
        { t = Softplus(x) y = MatMul(t, w) }"""
    result = convert(body)
    assert types(result) == {"Softplus": FULL, "MatMul": HALF}
    assert "on the way may overflow" in reasons(result)


def test_random_numbers() -> None:
    body = """(float[2,2] x) => (float[2,2] y, float[2,2] z) <float[2,2] w = {1,2,3,4}>
        { z = RandomNormal<shape=[2,2]>() y = MatMul(x, w) }"""
    result = convert(body)
    assert types(result) == {"RandomNormal": FULL, "MatMul": HALF}


def test_branches_stay_as_they_are() -> None:
    body = """(bool c, float[2,2] x) => (float[2,2] y) <float[2,2] w = {1,2,3,4}> {
        t = MatMul(x, w)
        u = If (c) <
            then_branch = a () => (float[2,2] p) { p = Relu(t) },
            else_branch = b () => (float[2,2] q) { q = Neg(t) } >
        y = MatMul(u, w) }"""
    result = convert(body)
    assert types(result)["Relu"] == FULL
    assert types(result)["If"] == FULL
    assert ops(result).count("Cast") == 4
    assert "its subgraphs stay in 32 bits" in reasons(result)


def test_unknown_operators_stay() -> None:
    body = """(float[2,2] x) => (float[2,2] y) <float[2,2] t, float[2,2] w = {1,2,3,4}>
        { t = mine.Op(x) y = MatMul(t, w) }"""
    result = PassManager(ConvertFp16()).run(ir.parse_text(text(body)))
    assert types(result) == {"Op": FULL, "MatMul": HALF}


def test_quantized_parts_stay() -> None:
    body = """(float[2,2] x) => (float[2,2] y)
        <float s = {0.5}, uint8 z = {3}, float[2,2] w = {1,2,3,4}>
        { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = MatMul(d, w) }"""
    result = convert(body, opset=19)
    assert types(result)["DequantizeLinear"] == FULL
    assert "quantized already" in reasons(result)


def test_weights_that_callers_may_override_stay() -> None:
    body = """(float[1,2] x, float[2,2] w = {1,2,3,4}) => (float[1,2] y) { y = MatMul(x, w) }"""
    result = convert(body)
    assert not result.report.changed
    frozen = PassManager(parse("freeze-inputs,convert-fp16")).run(ir.parse_text(text(body)))
    assert types(frozen) == {"MatMul": HALF}


def test_outputs_keep_name_and_type() -> None:
    body = """(float[1,2] x) => (float[1,2] t, float[1,2] y) <float[2,2] w = {1,2,3,4}>
        { t = MatMul(x, w) y = MatMul(t, w) }"""
    result = convert(body)
    assert [(v.name, v.dtype) for v in result.model.graph.outputs] == [("t", FULL), ("y", FULL)]
    assert ops(result) == ["Cast", "MatMul", "MatMul", "Cast", "Cast"]


@pytest.mark.parametrize("name", ["digits_mobilenet", "digits_resnet", "digits_transformer"])
def test_real_models_keep_their_quality(models_dir: Path, name: str) -> None:
    source = models_dir / f"{name}.onnx"
    result = graphopt.optimize(source, "O2,convert-fp16", data=models_dir / "digits_calib.npz")
    record = next(p for p in result.report.passes if p.name == "convert-fp16")
    assert record.status == "ok"
    assert record.after.bytes < 0.6 * record.before.bytes
    counts = Counter(n.op_type for n in ir.all_nodes(result.model))
    assert counts["Cast"] == 2
    found = graphopt.verify(
        source, result.model, data=models_dir / "digits_test.npz", exactness="lossy"
    )
    assert found.ok
    assert found.sqnr_db is not None
    assert found.sqnr_db > 45
    ir.check(graphopt.load(source), result.model)


def test_sequences_stay_as_they_are() -> None:
    model = ir.parse_text(
        text(
            """(float[2,2] x) => (seq(float[2,2]) s, float[2,2] z) <float[2,2] w = {1,2,3,4}> {
            t = MatMul(x, w) s = SplitToSequence(t) u = MatMul(x, w)
            v = SequenceInsert(s, u) y = ConcatFromSequence<axis=0>(v) z = MatMul(y, w) }"""
        )
    )
    result = PassManager(ConvertFp16(), oracle="each", on_mismatch="raise").run(model)
    assert result.report.changed
    assert ir.interface_difference(model, result.model) is None
    assert "its sequence stays in 32 bits" in reasons(result)
