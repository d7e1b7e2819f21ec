"""Synthetic models of any size: a convolution chain, an elementwise DAG, shape scaffolding.

``python benchmarks/generators.py KIND NODES OUT.onnx`` writes one.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_CHANNELS = 8


def chain(nodes: int) -> onnx.ModelProto:
    """Blocks of 7 nodes: (Conv1x1, Add, Relu) twice and an Add with the block's input.

    Both bias Adds of a block fold into their Conv, so 5 of 7 nodes are left at best.
    """
    rng = np.random.default_rng(0)
    made: list[onnx.NodeProto] = []
    weights: list[TensorProto] = []
    value = "x"
    block = 0
    while len(made) < nodes:
        start = value
        for half in "ab":
            name = f"{block}{half}"
            w = rng.standard_normal((_CHANNELS, _CHANNELS, 1, 1)).astype(np.float32) / _CHANNELS
            b = rng.standard_normal((_CHANNELS, 1, 1)).astype(np.float32) / 100
            weights.append(numpy_helper.from_array(w, f"w{name}"))
            weights.append(numpy_helper.from_array(b, f"b{name}"))
            made.append(helper.make_node("Conv", [value, f"w{name}"], [f"c{name}"], f"conv{name}"))
            made.append(
                helper.make_node("Add", [f"c{name}", f"b{name}"], [f"s{name}"], f"bias{name}")
            )
            made.append(helper.make_node("Relu", [f"s{name}"], [f"r{name}"], f"relu{name}"))
            value = f"r{name}"
        made.append(helper.make_node("Add", [value, start], [f"y{block}"], f"skip{block}"))
        value = f"y{block}"
        block += 1
    return _model("chain", made, weights, [1, _CHANNELS, 8, 8], value)


def dag(nodes: int) -> onnx.ModelProto:
    """A wide elementwise DAG, about a seventh identities and as many duplicated nodes."""
    rng = np.random.default_rng(0)
    made: list[onnx.NodeProto] = []
    recent: deque[tuple[str, tuple[str, ...], str]] = deque(maxlen=64)
    unary, binary = ("Tanh", "Sigmoid", "Neg", "Abs"), ("Max", "Min", "Mul")

    def add(op: str, *inputs: str) -> str:
        output = f"v{len(made)}"
        made.append(helper.make_node(op, list(inputs), [output], f"n{len(made)}"))
        recent.append((op, inputs, output))
        return output

    width = 32
    weights = [
        numpy_helper.from_array(np.array(np.cos(i + 1.0), np.float32), f"k{i}")
        for i in range(width)
    ]
    loose = deque(add("Mul", "x", f"k{i}") for i in range(width))
    while len(made) < nodes - 1:
        value = loose.popleft()
        kind = rng.random()
        op, inputs, other = recent[int(rng.integers(len(recent)))]
        if kind < 0.17:
            value = add("Identity", value)
        elif kind < 0.34:  # the same node once more
            value = add("Max", value, add(op, *inputs))
        elif kind < 0.55:
            value = add("Tanh", add("Add" if kind < 0.45 else "Sub", value, other))
        elif kind < 0.8:
            value = add(binary[int(rng.integers(len(binary)))], value, other)
        else:
            value = add(unary[int(rng.integers(len(unary)))], value)
        loose.append(value)
    made.append(helper.make_node("Concat", list(loose), ["y"], "join", axis=0))
    return _model("dag", made, weights, [4, 8], "y")


def shapes(nodes: int) -> onnx.ModelProto:
    """Blocks that reshape a static input to its own shape, dim by dim, and transpose it twice.

    A block is (Shape, Gather, Unsqueeze) twice, Concat, Reshape, Transpose, Transpose: 10 nodes,
    all removable.
    """
    return _scaffold("shapes", nodes, [2, 4, 6])


def shapes_dynamic(nodes: int) -> onnx.ModelProto:
    """The same blocks on an input with two symbolic dims."""
    return _scaffold("shapes_dynamic", nodes, ["batch", "rows", 6])


def _scaffold(name: str, nodes: int, dims: list[int | str]) -> onnx.ModelProto:
    weights = [
        numpy_helper.from_array(np.array(0, np.int64), "zero"),
        numpy_helper.from_array(np.array(1, np.int64), "one"),
        numpy_helper.from_array(np.array([0], np.int64), "axes"),
        numpy_helper.from_array(np.array([-1], np.int64), "rest"),
    ]
    made: list[onnx.NodeProto] = []

    def add(op: str, *inputs: str, **attributes: Any) -> str:
        output = f"v{len(made)}"
        made.append(helper.make_node(op, list(inputs), [output], f"n{len(made)}", **attributes))
        return output

    value = "x"
    while len(made) < nodes:
        first = add("Unsqueeze", add("Gather", add("Shape", value), "zero", axis=0), "axes")
        second = add("Unsqueeze", add("Gather", add("Shape", value), "one", axis=0), "axes")
        reshaped = add("Reshape", value, add("Concat", first, second, "rest", axis=0))
        value = add("Transpose", add("Transpose", reshaped, perm=[0, 2, 1]), perm=[0, 2, 1])
    return _model(name, made, weights, dims, value)


def _model(
    name: str,
    nodes: list[onnx.NodeProto],
    weights: list[TensorProto],
    dims: list[int | str],
    output: str,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


KINDS: dict[str, Callable[[int], onnx.ModelProto]] = {
    "chain": chain,
    "dag": dag,
    "shapes": shapes,
    "shapes_dynamic": shapes_dynamic,
}


def write(kind: str, nodes: int, folder: Path) -> Path:
    """Write a model of about ``nodes`` nodes below a folder, once; returns its file.

    Args:
        kind: A name in ``KINDS``.
        nodes: How many nodes; rounded up to whole blocks.
        folder: Where generated models are kept.
    """
    path = folder / f"{kind}_{nodes}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        onnx.save(KINDS[kind](nodes), str(path))
    return path


if __name__ == "__main__":
    onnx.save(KINDS[sys.argv[1]](int(sys.argv[2])), sys.argv[3])
