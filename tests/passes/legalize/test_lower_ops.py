"""Lowering, for made-up targets that compute certain operators and nothing else."""

from __future__ import annotations

import dataclasses

import pytest

from graphopt import PassManager, Result, Target, ir, targets
from graphopt.passes.legalize import LowerOps


def target(*operators: str, **facts: object) -> Target:
    toy = dataclasses.replace(
        targets.get("portable"), name="toy", operators=frozenset(operators), requirements=()
    )
    return dataclasses.replace(toy, **facts)  # type: ignore[arg-type]


def lower(body: str, *operators: str, opset: int = 17, **facts: object) -> Result:
    """Lower, and compare the numbers."""
    text = f'<ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1]> g {body}'
    chosen = target(*operators, **facts)
    manager = PassManager(LowerOps(), target=chosen, oracle="each", on_mismatch="raise")
    result = manager.run(ir.parse_text(text))
    ir.verify(result.model)
    again = manager.run(result.model)
    assert not again.report.changed
    return result


def ops(result: Result) -> list[str]:
    return [n.op_type for n in ir.all_nodes(result.model)]


def declined(result: Result) -> list[str]:
    return list(result.report.passes[0].declined)


UNARY = "(float[2,3] x) => (float[2,3] y) {{ y = {}(x) }}"


@pytest.mark.parametrize(
    ("op", "opset", "taken", "want"),
    [
        ("HardSwish", 14, "Add Clip Mul", "Add Clip Mul Mul"),
        ("HardSigmoid", 17, "Add Mul Min Max", "Mul Add Min Max"),
        ("HardSigmoid<alpha=0.16666667>", 17, "Add Mul Clip", "Add Clip Mul"),
        ("Softplus", 17, "Abs Neg Exp Relu Log Add", "Abs Neg Exp Relu Add Log Add"),
        (
            "Mish", 18, "Abs Neg Exp Relu Log Add Tanh Mul",
            "Abs Neg Exp Relu Add Log Add Tanh Mul",
        ),
        ("Gelu", 20, "Div Erf Add Mul", "Sqrt Div Erf Add Mul Mul"),
        ("Reciprocal", 17, "Div", "Div"),
        ("Softsign", 18, "Abs Add Div", "Abs Add Div"),
        (
            "LogSoftmax", 13, "ReduceMax Sub Exp ReduceSum Log",
            "ReduceMax Sub Exp ReduceSum Log Sub",
        ),
        ("Relu", 17, "Relu", "Relu"),
    ],
)  # fmt: skip
def test_functions_of_one_input(op: str, opset: int, taken: str, want: str) -> None:
    assert ops(lower(UNARY.format(op), *taken.split(), opset=opset)) == want.split()


def test_hard_swish_in_full() -> None:
    assert (
        ir.dump(lower(UNARY.format("HardSwish"), "Add", "Clip", "Mul").model)
        == """graph(%x: float[2,3]) {
  const %six: float[]
  const %sixth: float[]
  const %three: float[]
  const %zero: float[]
  %add = Add(%x, %three)
  %clip = Clip(%add, %zero, %six)
  %mul = Mul(%clip, %sixth)
  %y = Mul(%x, %mul)
  return %y
}
"""
    )


@pytest.mark.parametrize(
    ("op", "opset", "why"),
    [
        ("Gelu", 20, "its definition needs Erf, which the target lacks"),
        ("Erf", 17, "the standard does not define Erf in terms of other operators"),
        ("Mish", 18, "its definition needs"),
        ("Relu", 18, "its definition needs Max, which the target lacks"),
        ("HardSwish", 18, "the target lacks what it would be expressed by"),
    ],
)
def test_what_cannot_be_expressed_stays(op: str, opset: int, why: str) -> None:
    result = lower(UNARY.format(op), "Div", "Mul", "Add", opset=opset)
    assert not result.report.changed
    assert any(why in text for text in declined(result))


@pytest.mark.parametrize("domain", ["Gelu", "QuickGelu<alpha=1.5>"])
def test_contrib_activations(domain: str) -> None:
    taken = ("Erf", "Mul", "Add", "Div", "Sigmoid")
    result = lower(UNARY.format(f"com.microsoft.{domain}"), *taken)
    assert set(ops(result)) <= set(taken)


def test_convolution_over_one_dimension() -> None:
    body = """(float[2,2,9] x) => (float[2,2,K] y)
    <float[2,1,3] w = {1,2,3,4,5,6}, float[2] b = {1,2}>
    { y = Conv<kernel_shape=[3],strides=[2],pads=[1,2],dilations=[1],group=2>(x, w, b) }"""
    result = lower(
        body, "Conv", "Unsqueeze", "Squeeze",
        requirements=(_rank_of("Conv", 4),),
    )  # fmt: skip
    assert ops(result) == ["Unsqueeze", "Conv", "Squeeze"]
    conv = next(n for n in result.model.graph if n.op_type == "Conv")
    assert ir.attr(conv, "kernel_shape") == (1, 3)
    assert ir.attr(conv, "strides") == (1, 2)
    assert ir.attr(conv, "pads") == (0, 1, 0, 2)
    assert ir.attr(conv, "group") == 2


def test_views_become_reshapes_where_shapes_are_known() -> None:
    body = """(float[2,2,9] x) => (float[2,1,3] y) <int64[6] d = {0,0,0,0,0,1}> {
        p = MaxPool<kernel_shape=[3],strides=[3]>(x)
        m = AveragePool<kernel_shape=[3]>(p)
        t = Transpose<perm=[0,2,1]>(m)
        y = Pad(t, d)
    }"""
    result = lower(
        body, "MaxPool", "AveragePool", "Reshape", "Transpose", "Pad",
        requirements=(_rank_of("MaxPool", 4), _rank_of("AveragePool", 4)),
    )  # fmt: skip
    assert set(ops(result)) == {"MaxPool", "AveragePool", "Reshape", "Transpose", "Pad"}


def _rank_of(op: str, rank: int) -> targets.Requirement:
    def why(node: ir.Node) -> str | None:
        return None if ir.rank(node.inputs[0]) == rank else f"it is not of rank {rank}"

    return targets.Requirement(f"rank-of-{op.lower()}", why, frozenset({op}))


def test_pooling_with_positions_stays() -> None:
    body = """(float[1,1,4] x) => (float[1,1,2] y, int64[1,1,2] i)
        { y, i = MaxPool<kernel_shape=[3]>(x) }"""
    result = lower(body, "MaxPool", requirements=(_rank_of("MaxPool", 4),))
    assert not result.report.changed
    assert any("second output" in text for text in declined(result))


GEMM = "(float[3,2] a, float[4,3] b, float[4] c) => (float[2,4] y) { y = Gemm<%s>(a, b, c) }"


def test_gemm_without_attributes() -> None:
    body = GEMM % "transA=1,transB=1,alpha=0.5,beta=2.0"
    plain = targets.Requirement(
        "plain",
        lambda n: "it has factors" if ir.attr(n, "alpha") != 1 or ir.attr(n, "transA") else None,
        frozenset({"Gemm"}),
    )
    result = lower(body, "Gemm", "Transpose", "Mul", requirements=(plain,))
    assert ops(result) == ["Transpose", "Mul", "Mul", "Gemm"]
    gemm = next(n for n in result.model.graph if n.op_type == "Gemm")
    assert {k: ir.attr(gemm, k) for k in ("alpha", "beta", "transA", "transB")} == {
        "alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1,
    }  # fmt: skip


def test_gemm_takes_factors_into_constants() -> None:
    body = """(float[2,3] a) => (float[2,2] y) <float[3,2] b = {1,2,3,4,5,6}, float[2] c = {1,2}>
        { y = Gemm<alpha=2.0,beta=0.5>(a, b, c) }"""
    result = lower(body, "MatMul", "Add")
    assert ops(result) == ["MatMul", "Add"]


def test_integer_gemm_stays() -> None:
    body = "(int32[2,2] a, int32[2,2] b) => (int32[2,2] y) { y = Gemm<transA=1>(a, b) }"
    text = f'<ir_version: 8, opset_import: ["": 17]> g {body}'
    result = PassManager(LowerOps(), target=target("Add")).run(ir.parse_text(text))
    assert not result.report.changed


@pytest.mark.parametrize(
    ("call", "want"),
    [
        ('Conv(x, w) }', ["Conv"]),
        ('com.microsoft.FusedConv<activation="Relu">(x, w) }', ["Conv", "Relu"]),
        (
            'com.microsoft.FusedConv<activation="LeakyRelu",activation_params=[0.3]>(x, w) }',
            ["Conv", "LeakyRelu"],
        ),
        (
            'com.microsoft.FusedConv<activation="Clip",activation_params=[0.0,2.0]>(x, w) }',
            ["Conv", "Clip"],
        ),
        (
            'com.microsoft.FusedConv<activation="HardSigmoid",activation_params=[0.3,0.4]>(x, w) }',
            ["Conv", "HardSigmoid"],
        ),
    ],
)  # fmt: skip
def test_fused_convolutions(call: str, want: list[str]) -> None:
    body = "(float[1,2,2,2] x) => (float[1,1,2,2] y) <float[1,2,1,1] w = {1,-2}> { y = " + call
    assert ops(lower(body, "Conv", "Relu", "LeakyRelu", "Clip", "HardSigmoid")) == want


def test_fused_addition() -> None:
    body = """(float[1,2,2,2] x, float[1,1,2,2] z) => (float[1,1,2,2] y) <float[1,2,1,1] w = {1,-2}>
        { y = com.microsoft.FusedConv<activation="Relu">(x, w, , z) }"""
    assert ops(lower(body, "Conv", "Relu", "Add")) == ["Conv", "Add", "Relu"]


@pytest.mark.parametrize("opset", [17, 18])
def test_layer_normalization(opset: int) -> None:
    body = """(float[2,3,4] x) => (float[2,3,4] y)
        <float[3,4] s = {1,2,3,4,5,6,7,8,9,10,11,12}, float[4] b = {1,2,3,4}>
        { y = LayerNormalization<axis=1>(x, s, b) }"""
    taken = ("Sub", "ReduceMean", "Mul", "Add", "Sqrt", "Div")
    assert set(ops(lower(body, *taken, opset=opset))) == set(taken)


def test_layer_normalization_whose_mean_is_used_stays() -> None:
    body = """(float[2,4] x, float[4] s) => (float[2,4] y, float[2,1] m)
        { y, m = LayerNormalization(x, s) }"""
    result = lower(body, "Sub", "ReduceMean", "Mul", "Add", "Sqrt", "Div")
    assert ops(result) == ["LayerNormalization"]


@pytest.mark.parametrize(
    ("keepdims", "want"), [(1, ["GlobalAveragePool"]), (0, ["GlobalAveragePool", "Reshape"])]
)
def test_mean_over_images(keepdims: int, want: list[str]) -> None:
    shape = "1,2,1,1" if keepdims else "1,2"
    body = f"""(float[1,2,3,4] x) => (float[{shape}] y)
        {{ y = ReduceMean<axes=[-1,2],keepdims={keepdims}>(x) }}"""
    assert ops(lower(body, "GlobalAveragePool", "Reshape")) == want


def test_mean_over_other_axes_stays() -> None:
    body = "(float[1,2,3,4] x) => (float[1,2,1,4] y) { y = ReduceMean<axes=[2]>(x) }"
    assert ops(lower(body, "GlobalAveragePool")) == ["ReduceMean"]


def test_sums_of_many() -> None:
    body = "(float[2] a, float[2] b, float[2] c) => (float[2] y) { y = Sum(a, b, c) }"
    assert ops(lower(body, "Add")) == ["Add", "Add"]
    body = "(float[2] a) => (float[2] y) { t = Max(a) y = Relu(t) }"
    assert ops(lower(body, "Relu")) == ["Relu"]


def test_powers() -> None:
    body = "(float[2,2] x) => (float[2,2] y) <float two = {2}> { y = Pow(x, two) }"
    assert ops(lower(body, "Mul")) == ["Mul"]
    body = "(float[2] x, float p) => (float[2] y) { y = Pow(x, p) }"
    assert ops(lower(body, "Mul")) == ["Pow"]


def test_nothing_is_lowered_that_is_taken_or_only_of_a_wrong_shape() -> None:
    body = "(float[N,3] x) => (float[N,3] y) { y = HardSwish(x) }"
    result = lower(body, "HardSwish", "Add", "Clip", "Mul", static_shapes=True)
    assert ops(result) == ["HardSwish"]


def test_within_branches() -> None:
    body = """(bool c, float[2,3] x) => (float[2,3] y) { y = If (c) <
        then_branch = a () => (float[2,3] p) { p = HardSwish(x) },
        else_branch = b () => (float[2,3] q) { q = Relu(x) } > }"""
    assert "HardSwish" not in ops(lower(body, "If", "Relu", "Add", "Clip", "Mul"))


def test_growth_is_no_reason_to_undo_it() -> None:
    model = ir.parse_text('<ir_version: 8, opset_import: ["": 17]> g ' + UNARY.format("HardSwish"))
    report = PassManager(LowerOps(), target=target("Add", "Clip", "Mul")).run(model).report
    assert report.passes[0].status == "ok"
    assert report.after.nodes > report.before.nodes


def test_half_precision() -> None:
    body = "(float16[2,3] x) => (float16[2,3] y) { y = HardSwish(x) }"
    result = lower(body, "Add", "Clip", "Mul")
    constants = result.model.graph.initializers.values()
    assert {v.dtype for v in constants} == {ir.DataType.FLOAT16}


def test_global_pools_by_their_size() -> None:
    body = "(float[1,2,3,4] x) => (float[1,2,1,1] y) { y = GlobalAveragePool(x) }"
    result = lower(body, "AveragePool")
    (pool,) = result.model.graph
    assert ir.attr(pool, "kernel_shape") == (3, 4)
    body = "(float[1,2,H,4] x) => (float[1,2,1,1] y) { y = GlobalAveragePool(x) }"
    assert not lower(body, "AveragePool").report.changed


@pytest.mark.parametrize(
    ("bounds", "want"),
    [
        ("zero", ["Relu"]), ("low", ["Max"]), (", high", ["Min"]), ("low, high", ["Min", "Max"]),
    ],
)  # fmt: skip
def test_clips(bounds: str, want: list[str]) -> None:
    body = """(float[2,3] x) => (float[2,3] y)
        <float zero = {0}, float low = {-2}, float high = {0.5}> { y = Clip(x, BOUNDS) }""".replace(
        "BOUNDS", bounds
    )
    assert ops(lower(body, "Min", "Max", "Relu")) == want


def test_clips_of_old() -> None:
    body = "(float[2,3] x) => (float[2,3] y) { y = Clip<min=-1.0, max=0.25>(x) }"
    assert ops(lower(body, "Min", "Max", opset=9)) == ["Min", "Max"]


def _without(op: str, attribute: str) -> targets.Requirement:
    def why(node: ir.Node) -> str | None:
        return f"it has {attribute}" if ir.attr(node, attribute) else None

    return targets.Requirement(attribute, why, frozenset({op}))


@pytest.mark.parametrize("pads", ["0,0,0,0", "1,0,2,1"])
def test_padding_that_counts(pads: str) -> None:
    body = f"""(float[1,2,5,5] x) => (float[1,2,H,W] y) {{
        y = AveragePool<kernel_shape=[2,2],strides=[2,2],count_include_pad=1,pads=[{pads}]>(x)
    }}"""
    plain = (_without("AveragePool", "count_include_pad"),)
    got = lower(body, "AveragePool", "Pad", requirements=plain)
    assert ops(got) == (["Pad"] if "1" in pads else []) + ["AveragePool"]


@pytest.mark.parametrize("extra", ["ceil_mode=1", 'auto_pad="SAME_UPPER"'])
def test_padding_that_depends_on_the_size_stays(extra: str) -> None:
    body = f"""(float[1,2,5,5] x) => (float[1,2,H,W] y)
        {{ y = AveragePool<kernel_shape=[2,2],strides=[2,2],count_include_pad=1,{extra}>(x) }}"""
    plain = (_without("AveragePool", "count_include_pad"),)
    assert not lower(body, "AveragePool", "Pad", requirements=plain).report.changed


@pytest.mark.parametrize(("opset", "axis"), [(9, 1), (9, 2), (13, -1)])
def test_softmax_of_matrices(opset: int, axis: int) -> None:
    body = f"(float[2,3,4] x) => (float[2,3,4] y) {{ y = Softmax<axis={axis}>(x) }}"
    got = lower(body, "Softmax", "Reshape", opset=opset, requirements=(_rank_of("Softmax", 2),))
    assert ops(got) == ["Reshape", "Softmax", "Reshape"]


def test_softmax_over_another_axis_stays() -> None:
    body = "(float[2,3,4] x) => (float[2,3,4] y) { y = Softmax<axis=1>(x) }"
    got = lower(body, "Softmax", "Reshape", requirements=(_rank_of("Softmax", 2),))
    assert not got.report.changed


def test_stacks_of_matrices() -> None:
    def why(node: ir.Node) -> str | None:
        return None if ir.rank(node.inputs[0]) == 2 else "it is a stack"

    requirement = targets.Requirement("matrix", why, frozenset({"MatMul"}))
    body = "(float[2,3,4] x, float[4,5] w) => (float[2,3,5] y) { y = MatMul(x, w) }"
    got = lower(body, "MatMul", "Reshape", requirements=(requirement,))
    assert ops(got) == ["Reshape", "MatMul", "Reshape"]
    body = "(float[2,3,4] x, float[2,4,5] w) => (float[2,3,5] y) { y = MatMul(x, w) }"
    assert not lower(body, "MatMul", "Reshape", requirements=(requirement,)).report.changed


def test_forms_with_integer_kernels() -> None:
    nnapi = targets.get("nnapi")
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[1,2,4,4] x) => (float[1,2] y) { p = GlobalAveragePool(x) y = Flatten(p) }"""
    model = ir.parse_text(text)
    assert not PassManager(LowerOps(), target=nnapi).run(model).report.changed
    result = PassManager(LowerOps(integer=True), target=nnapi, oracle="end").run(model)
    assert ops(result) == ["AveragePool", "Reshape"]
    assert result.report.oracle["verdict"] == "equal"
    nobody = target("GlobalAveragePool", "Flatten", scheme=None)
    assert not PassManager(LowerOps(integer=True), target=nobody).run(model).report.changed


QUANTIZED = """(uint8[1,2,4,4] x) => (uint8[1,2,2,2] y)
    <float s = {0.1}, uint8 z = {7}, float t = {SCALE}, uint8 u = {ZERO}>
    { d = DequantizeLinear(x, s, z) p = MaxPool<kernel_shape=[2,2],strides=[2,2]>(d) TAIL }"""
FLOAT_ONLY = targets.Requirement(
    "integers", lambda n: "its input is float" if n.inputs[0].dtype == ir.DataType.FLOAT else None,
    frozenset({"MaxPool"}),
)  # fmt: skip
INTEGERS = ("MaxPool", "DequantizeLinear", "QuantizeLinear", "Relu")


@pytest.mark.parametrize(
    ("scale", "zero", "want"),
    [
        ("0.1", "7", ["MaxPool"]),
        ("0.3", "7", ["DequantizeLinear", "QuantizeLinear", "MaxPool"]),
        ("0.1", "9", ["DequantizeLinear", "QuantizeLinear", "MaxPool"]),
    ],
)
def test_pooling_between_conversions(scale: str, zero: str, want: list[str]) -> None:
    body = QUANTIZED.replace("SCALE", scale).replace("ZERO", zero)
    body = body.replace("TAIL", "y = QuantizeLinear(p, t, u)")
    got = lower(body, *INTEGERS, requirements=(FLOAT_ONLY,))
    assert ops(got) == want
    assert got.report.passes[0].error is not None
    assert got.report.passes[0].error["max_abs"] == 0


def test_pooling_whose_result_something_else_uses_stays() -> None:
    body = QUANTIZED.replace("SCALE", "0.1").replace("ZERO", "7")
    body = body.replace("TAIL", "y = QuantizeLinear(p, t, u) r = Relu(p)")
    body = body.replace("(uint8[1,2,2,2] y)", "(uint8[1,2,2,2] y, float[1,2,2,2] r)")
    got = lower(body, *INTEGERS, requirements=(FLOAT_ONLY,))
    assert not got.report.changed
    assert any("something else uses its result" in text for text in declined(got))
