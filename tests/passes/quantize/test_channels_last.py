from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt import Exactness, Fuel, PassManager, ir
from graphopt.passes.quantize.channels_last import ChannelsLast
from graphopt.runtime import ort
from graphopt.testing import assert_equivalent, check_pass

HEAD = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>'
# Scales and zero points, and weights: 8 channels to 8, depthwise, and 3 to 8.
CONSTANTS = (
    "float s = {0.05}, uint8 z = {7}, float u = {0.07}, uint8 v = {9}, float t = {0.01},"
    f" int8 o = {{0}}, int8[8,8,1,1] w = {{{','.join(str(i % 19 - 9) for i in range(64))}}},"
    f" int8[8,1,3,3] k = {{{','.join(str(i % 23 - 11) for i in range(72))}}},"
    " int32[8] b = {1,-20,300,-400,50,6,-70,8}"
)
CONV = "QLinearConv(%s, s, z, w, t, o, s, z, b)"
DEPTHWISE = "QLinearConv<group=8,pads=[1,1,1,1]>(%s, s, z, k, t, o, s, z, b)"


def island(
    body: str,
    *,
    shape: str = "2,8,6,6",
    constants: str = "",
    head: str = HEAD,
    out: str = "uint8[]",
) -> str:
    return f"""
    {head} g (uint8[{shape}] x) => ({out} y)
    <{CONSTANTS}{", " if constants else ""}{constants}> {{ {body} }}
    """


def relayout(text: str, target: str = "cpu-x64") -> tuple[ir.Model, ir.Model]:
    model = ir.parse_text(text)
    result = PassManager(ChannelsLast(), target=target).run(model)
    assert result.report.passes[0].status in ("ok", "unchanged", "skipped"), result.report.passes
    ir.verify(result.model)
    return model, result.model


def count(model: ir.Model, name: str = "Transpose") -> int:
    return sum(n.op_type == name for n in ir.all_nodes(model))


def optimized(model: ir.Model, folder: Path) -> Counter[str]:
    """What ONNX Runtime makes of a model."""
    import onnx

    options = ort().SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4  # it warns that such a model is for one machine
    ort().InferenceSession(ir.to_bytes(model), options, providers=["CPUExecutionProvider"])
    return Counter(n.op_type for n in onnx.load(folder / "optimized.onnx").graph.node)


def test_residual_block() -> None:
    check_pass(
        ChannelsLast(),
        f"""
        {HEAD}
        g (float[N,8,6,6] x) => (float[N,8,6,6] y) <{CONSTANTS}> {{
            q = QuantizeLinear(x, s, z)
            c = {CONV % "q"}
            d = {DEPTHWISE % "c"}
            a = com.microsoft.QLinearAdd(d, s, z, q, s, z, u, v)
            y = DequantizeLinear(a, u, v)
        }}
        """,
        """
        graph(%x: float[N,8,6,6]) {
          const %b: int32[8] = [1, -20, 300, -400, 50, 6, -70, 8]
          const %k: int8[8,1,3,3]
          const %o: int8[]
          const %s: float[]
          const %t: float[]
          const %u: float[]
          const %v: uint8[]
          const %w: int8[8,8,1,1]
          const %z: uint8[]
          %q = QuantizeLinear(%x, %s, %z)
          %transpose = Transpose(%q) {perm=[0, 2, 3, 1]}
          %qlinearconv = com.microsoft.QLinearConv(%transpose, %s, %z, %w, %t, %o, %s, %z, %b) {channels_last=1}
          %qlinearconv.1 = com.microsoft.QLinearConv(%qlinearconv, %s, %z, %k, %t, %o, %s, %z, %b) {channels_last=1, group=8, pads=[1, 1, 1, 1]}
          %qlinearadd = com.microsoft.QLinearAdd(%qlinearconv.1, %s, %z, %transpose, %s, %z, %u, %v)
          %transpose.2 = Transpose(%qlinearadd) {perm=[0, 3, 1, 2]}
          %y = DequantizeLinear(%transpose.2, %u, %v)
          return %y
        }
        """,  # noqa: E501
    )


BETWEEN = [
    ("a = com.microsoft.QLinearMul(c, s, z, c, s, z, s, z)", ""),
    ("a = com.microsoft.QLinearAdd(c, s, z, m, s, z, s, z)", "uint8[8,1,1] m = {1,2,3,4,5,6,7,8}"),
    ("a = com.microsoft.QLinearMul(m, s, z, c, s, z, s, z)", "uint8 m = {99}"),
    (
        "m = com.microsoft.QLinearGlobalAveragePool(c, s, z, s, z) "
        "a = com.microsoft.QLinearMul(c, s, z, m, s, z, s, z)",
        "",
    ),
    (
        "a = com.microsoft.QLinearAveragePool<kernel_shape=[3,3],pads=[1,1,1,1]>(c, s, z, u, v)",
        "",
    ),
    ("a = com.microsoft.QLinearLeakyRelu<alpha=0.1>(c, s, z, s, z)", ""),
    ("a = com.microsoft.QLinearSigmoid(c, s, z, u, z)", ""),
    (
        "d = com.microsoft.QLinearConcat<axis=1>(s, z, c, s, z, x, u, v)"
        "a = Slice(d, one, nine, axis)",
        "int64[1] one = {1}, int64[1] nine = {9}, int64[1] axis = {-3}",
    ),
    ("d = Concat<axis=-2>(c, c) a = MaxPool<kernel_shape=[2,1],strides=[2,1]>(d)", ""),
    ("a = MaxPool<kernel_shape=[3,3],pads=[1,1,0,0],ceil_mode=1,strides=[2,1]>(c)", ""),
    ("a = Clip(c, z, m)", "uint8 m = {77}"),
    (
        "d = Pad(c, p, z) a = Slice(d, start, end)",
        "int64[8] p = {0,1,2,3,0,4,5,6}, int64[2] start = {0,1}, int64[2] end = {2,9}",
    ),
    ("a = Slice(c, start, end, , step)", "int64[3] start={0,0,5}, int64[3] end={2,8,-9},"
     " int64[3] step={1,1,-2}"),
    ("a = Resize<mode=\"nearest\">(c, , f)", "float[4] f = {1, 1, 2, 0.5}"),
    ("a = Resize<mode=\"nearest\">(c, , , f)", "int64[4] f = {2, 8, 3, 9}"),
    ("d = DequantizeLinear(c, s, z) a = QuantizeLinear(d, u, v)", ""),
]  # fmt: skip


@pytest.mark.parametrize(("between", "constants"), BETWEEN)
def test_between_convolutions(between: str, constants: str, tmp_path: Path) -> None:
    text = island(f"c = {CONV % 'x'} {between} y = {CONV % 'a'}", constants=constants)
    model, last = relayout(text)
    assert count(last) == 2
    assert_equivalent(model, last, Exactness.BITWISE)
    assert optimized(last, tmp_path)["Transpose"] == 2


@pytest.mark.parametrize("shape", ["2,8,6", "2,8,3,4,5"])
def test_other_ranks(shape: str) -> None:
    ones = ",".join("1" * (shape.count(",") - 1))
    text = island(
        f"c = {CONV % 'x'} a = com.microsoft.QLinearAdd(c, s, z, x, s, z, s, z) y = {CONV % 'a'}",
        shape=shape,
    ).replace("[8,8,1,1]", f"[8,8,{ones}]")
    model, last = relayout(text)
    assert count(last) == 2
    assert_equivalent(model, last, Exactness.BITWISE)


def test_pad_with_axes() -> None:
    text = island(
        f"c = {CONV % 'x'} d = Pad(c, p, z, axes) y = {CONV % 'd'}",
        constants="int64[2] p = {1, 2}, int64[1] axes = {-1}",
        head=HEAD.replace("17", "18"),
    )
    model, last = relayout(text)
    assert count(last) == 2
    assert_equivalent(model, last, Exactness.BITWISE)


@pytest.mark.parametrize(
    "after", ["y = Flatten(a)", "y = Reshape(a, target)", "y = Reshape<allowzero=1>(a, rows)"]
)
def test_one_pixel_needs_no_transposition(after: str) -> None:
    text = island(
        f"c = {CONV % 'x'} a = com.microsoft.QLinearGlobalAveragePool(c, s, z, s, z) {after}",
        constants="int64[2] target = {0, -1}, int64[2] rows = {2, 8}",
    )
    model, last = relayout(text)
    # The shape of what contributed operators compute is known where an earlier pass knew it.
    (pool,) = [n for n in ir.all_nodes(model) if n.op_type == "QLinearGlobalAveragePool"]
    pool.outputs[0].shape, pool.outputs[0].type = (
        ir.Shape([2, 8, 1, 1]),
        ir.TensorType(ir.DataType.UINT8),
    )
    last = PassManager(ChannelsLast(), target="cpu-x64").run(model).model
    assert count(last) == 1
    assert_equivalent(model, last, Exactness.BITWISE)


@pytest.mark.parametrize(
    ("after", "constants"),
    [
        ("y = Reshape(c, p)", "int64[3] p = {2, 0, -1}"),
        ("y = Flatten<axis=2>(c)", ""),
        ("y = Flatten(c)", ""),
    ],
)
def test_flattening_pixels_needs_one(after: str, constants: str) -> None:
    model, last = relayout(island(f"c = {CONV % 'x'} {after}", constants=constants))
    assert count(last) == 2
    assert_equivalent(model, last, Exactness.BITWISE)


def test_transposes_where_least_is_moved() -> None:
    """The smaller of two values: behind the pooling, and the integers rather than the floats."""
    text = island(
        f"c = {CONV % 'x'} a = MaxPool<kernel_shape=[6,6]>(c) "
        "d = DequantizeLinear(a, s, z) y = Exp(d)",
        shape="2,8,60,60",
        out="float[]",
    )
    model, last = relayout(text)
    assert [n.op_type for n in ir.all_nodes(last)] == [
        "Transpose",
        "QLinearConv",
        "NhwcMaxPool",
        "Transpose",
        "DequantizeLinear",
        "Exp",
    ]
    assert_equivalent(model, last, Exactness.BITWISE)


def test_one_transposition_for_all_readers() -> None:
    text = island(
        f"c = {CONV % 'x'} d = {CONV % 'x'} e = {CONV % 'c'}"
        "f = Flatten(c) h = Flatten(c) i = Flatten(d) j = Flatten(e)"
        "y = Concat<axis=1>(f, h, i, j)",
    )
    model, last = relayout(text)
    assert count(last) == 4  # %x, %c, %d, %e
    assert_equivalent(model, last, Exactness.BITWISE)


def test_output_inside_an_island() -> None:
    text = island(f"y = {CONV % 'x'} d = {CONV % 'y'} e = {CONV % 'd'}").replace(
        "(uint8[] y)", "(uint8[] y, uint8[] e)"
    )
    model, last = relayout(text)
    assert [v.name for v in last.graph.outputs] == ["y", "e"]
    assert count(last) == 3
    assert_equivalent(model, last, Exactness.BITWISE)


def test_used_in_a_subgraph() -> None:
    text = island(
        f"c = {CONV % 'x'} d = {CONV % 'c'} yes = Less(z, v)"
        "y = If(yes) <then_branch = g1 () => (uint8[] r) { r = Max(c, d) },"
        f" else_branch = g2 () => (uint8[] r) {{ r = {CONV % 'd'} }}>",
    )
    model, last = relayout(text)
    assert count(last) == 5  # %x, %c, %d before the If, and around the convolution in it
    assert_equivalent(model, last, Exactness.BITWISE)


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("a = MaxPool<kernel_shape=[2,2]>(x) y = Clip(a, z)", ""),
        ("y = com.microsoft.QLinearAdd(x, s, z, x, s, z, s, z)", ""),
        (
            "y = com.microsoft.QLinearConv<channels_last=1>(x, s, z, w, t, o, s, z, b)",
            "",
        ),
    ],
)
def test_leaves_alone(body: str, constants: str) -> None:
    check_pass(ChannelsLast(), island(body, constants=constants, shape="2,8,8,8"), None)


@pytest.mark.parametrize(
    ("between", "constants"),
    [
        ("n = Shape(c) p = Concat<axis=0>(n, n) m = Mod(p, p) a = Pad(c, m, z)", ""),
        ("m = Identity(f) a = Slice(c, n0, f, m)", "int64[1] n0 = {0}, int64[1] f = {2}"),
        ("a = Tile(c, f)", "int64[4] f = {1,1,2,1}"),
        ("a, i = MaxPool<kernel_shape=[2,2]>(c) j = Identity(i)", ""),
        ("d = DequantizeLinear<axis=1>(c, ss, zz) a = QuantizeLinear<axis=1>(d, ss, zz)",
         "float[8] ss = {1,2,3,4,5,6,7,8}, uint8[8] zz = {1,2,3,4,5,6,7,8}"),
    ],
)  # fmt: skip
def test_ends_an_island(between: str, constants: str) -> None:
    text = island(f"c = {CONV % 'x'} {between} y = {CONV % 'a'}", constants=constants)
    model, last = relayout(text)
    assert count(last) == 4
    assert count(last, "NhwcMaxPool") == 0
    names = between.split("(")[0].split("= ")[1].split("<")[0]
    assert count(last, names) == count(model, names)


def test_fuel_ends_between_islands() -> None:
    text = island(
        f"c = {CONV % 'x'} r = Tile(c, f) y = {CONV % 'r'}", constants="int64[4] f = {1,1,2,1}"
    )
    model = ir.parse_text(text.replace(', "com.microsoft": 1', ""))
    fuel = Fuel(2)
    last = PassManager(ChannelsLast(), target="cpu-x64", instruments=[fuel]).run(model).model
    assert count(last) == 2
    assert last.opset_imports["com.microsoft"] == 1
    assert_equivalent(model, last, Exactness.BITWISE)


def test_other_targets() -> None:
    text = island(f"y = {CONV % 'x'}")
    for target in ("portable", "cuda"):
        model = ir.parse_text(text)
        result = PassManager(ChannelsLast(), target=target).run(model)
        (record,) = result.report.passes
        assert not record.changed
        assert record.reason == f"{target} does not take com.microsoft.QLinearConv"


def test_onnxruntime_leaves_transposes_where_a_branch_stays(tmp_path: Path) -> None:
    """What the pass is for: ONNX Runtime's own optimizer gives up on this residual network."""
    blocks = ["q0 = QuantizeLinear(f, s, z)"]
    for i in range(3):
        blocks += [
            f"c{i} = {CONV % f'q{i}'} d{i} = {CONV % f'c{i}'}",
            f"q{i + 1} = com.microsoft.QLinearAdd(d{i}, s, z, q{i}, s, z, s, z)",
        ]
    text = f"""
    {HEAD} g (float[2,8,6,6] x) => (float[] y)
    <{CONSTANTS}, float[8,8,1,1] fw = {{{",".join(["0.1"] * 64)}}}> {{
        f = Conv(x, fw) {" ".join(blocks)} e = DequantizeLinear(q3, s, z)
        y = AveragePool<kernel_shape=[2,2]>(e)
    }}
    """
    model, last = relayout(text)
    assert optimized(model, tmp_path)["Transpose"] > 2
    made = optimized(last, tmp_path)
    assert made["Transpose"] == 2
    assert made["QLinearConv"] == 6
    feeds: dict[str, Any] = {
        "x": np.random.default_rng(0).standard_normal((2, 8, 6, 6)).astype(np.float32)
    }
    assert_equivalent(model, last, Exactness.BITWISE, data=[feeds])
