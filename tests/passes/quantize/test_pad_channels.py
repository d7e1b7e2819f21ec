from __future__ import annotations

import numpy as np
import pytest

from graphopt import Exactness, PassManager, ir
from graphopt.passes.quantize.pad_channels import PadChannels
from graphopt.testing import assert_equivalent, check_pass


def stem(
    channels: int = 3,
    *,
    opset: int = 17,
    group: int = 1,
    kind: str = "int8",
    zero: int = 0,
    perm: str = "[0,2,3,1]",
    size: str = "5,6",
    layout: int = 1,
) -> str:
    taps = channels // group * 9
    weights = ",".join(str(i % 19 - 9 if kind == "int8" else i % 19) for i in range(8 * taps))
    return f"""
    <ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1]>
    g (uint8[N,{channels},{size}] x) => (uint8[] y)
    <float s = {{0.05}}, uint8 z = {{7}}, float t = {{0.01}}, {kind} o = {{{zero}}},
    {kind}[8,{channels // group},3,3] w = {{{weights}}}> {{
        a = Transpose<perm={perm}>(x)
        y = com.microsoft.QLinearConv<channels_last={layout},group={group},pads=[1,1,1,1]>
            (a, s, z, w, t, o, s, z)
    }}
    """


def test_three_channels() -> None:
    result = check_pass(
        PadChannels(),
        stem(),
        """
        graph(%x: uint8[N,3,5,6]) {
          const %o: int8[]
          const %pads: int64[8] = [0, 0, 0, 0, 0, 1, 0, 0]
          const %s: float[]
          const %t: float[]
          const %w.1: int8[8,4,3,3]
          const %z: uint8[]
          %pad = Pad(%x, %pads, %z)
          %transpose = Transpose(%pad) {perm=[0, 2, 3, 1]}
          %y = com.microsoft.QLinearConv(%transpose, %s, %z, %w.1, %t, %o, %s, %z) {channels_last=1, group=1, pads=[1, 1, 1, 1]}
          return %y
        }
        """,  # noqa: E501
    )
    weight = ir.array(result.model.graph.initializers["w.1"])
    assert weight is not None
    assert not weight[:, 3].any()
    assert np.array_equal(weight[:, :3].reshape(-1), np.arange(216) % 19 - 9)


@pytest.mark.parametrize("channels", [2, 5, 6, 7])
def test_other_numbers_of_channels(channels: int) -> None:
    model = ir.parse_text(stem(channels))
    padded = PassManager(PadChannels(), target="cpu-x64").run(model).model
    (conv,) = [n for n in ir.all_nodes(padded) if n.op_type == "QLinearConv"]
    shape = ir.static_shape(conv.inputs[3])
    assert shape is not None
    assert shape[1] == {2: 4, 5: 8, 6: 8, 7: 8}[channels]
    assert_equivalent(model, padded, Exactness.BITWISE)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (stem(1), "it has one channel, and would compute four times as much"),
        (stem(4), None),
        (stem(8), None),
        (stem(6, group=2), None),
        (stem(kind="uint8"), "the fast kernel takes int8 weights with zero point 0 only"),
        (stem(zero=1), "the fast kernel takes int8 weights with zero point 0 only"),
        (stem(opset=12), "Pad takes 8-bit integers from opset 13 on"),
        (
            stem(perm="[0,3,2,1]"),
            "it does not follow a Transpose of the channels to the end",
        ),
        (stem(size="3,3", perm="[0,1,3,2]", layout=0), None),
    ],
)
def test_leaves_alone(text: str, reason: str | None) -> None:
    result = check_pass(PadChannels(), text, None)
    assert list(result.report.passes[0].declined) == ([f"pad-channels: {reason}"] if reason else [])


def test_transpose_with_another_reader() -> None:
    text = (
        stem()
        .replace("(uint8[] y)", "(uint8[] y, uint8[] b)")
        .replace("y = com", "b = Identity(a) y = com")
    )
    check_pass(PadChannels(), text, None)


def test_other_targets() -> None:
    for target in ("portable", "cpu-arm64", "cuda"):
        result = PassManager(PadChannels(), target=target).run(ir.parse_text(stem()))
        (record,) = result.report.passes
        assert not record.changed
        assert record.reason == f"{target} has no such kernel for uint8"
