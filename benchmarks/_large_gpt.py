"""A GPT with past keys and values as an exporter leaves it, its weights streamed to a data file.

Written node by node, so that making a 2.4 GB model takes no more memory than one weight. The graph
has what the legacy torch exporter emits: Shape/Gather/Unsqueeze/Concat scaffolding around each
Reshape, LayerNorm and GELU in pieces, a causal mask sliced from a constant, Constant nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Size:
    """Dimensions of the network; the defaults give 607 million parameters, 2.43 GB in float32."""

    layers: int = 12
    width: int = 1920
    heads: int = 16
    vocabulary: int = 19840
    positions: int = 512

    @property
    def parameters(self) -> int:
        """Matrix weights only."""
        return 12 * self.layers * self.width**2 + 2 * self.vocabulary * self.width


class Writer:
    """Collects nodes, and streams weights to the data file as they are made."""

    def __init__(self, location: str, data: IO[bytes]) -> None:
        self.location, self.data = location, data
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self.rng = np.random.default_rng(0)

    def weight(self, name: str, *shape: int, scale: float = 0.02) -> str:
        """Add a normally distributed weight of its own (no two are equal)."""
        array = self.rng.standard_normal(shape, np.float32)
        array *= scale
        offset = self.data.tell()
        self.data.write(array.tobytes())
        self.data.write(b"\0" * (-self.data.tell() % 4096))
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", self.location),
            ("offset", offset),
            ("length", array.nbytes),
        ):
            tensor.external_data.add(key=key, value=str(value))
        self.weights.append(tensor)
        return name

    def const(self, value: Any, dtype: type = np.int64) -> str:
        """Add a Constant node."""
        tensor = numpy_helper.from_array(np.asarray(value, dtype))
        return str(self.op("Constant", value=tensor))

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; returns the name of its output, or a list of several."""
        stem = f"/{kind.lower()}_{len(self.nodes)}"
        made = [f"{stem}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), made, stem, **attributes))
        return made[0] if outputs == 1 else made

    def dim(self, value: str, axis: int) -> str:
        """One dim of a value, as a vector of one element, the way exporters ask for it."""
        size = self.op("Gather", self.op("Shape", value), self.const(axis), axis=0)
        return str(self.op("Unsqueeze", size, self.const([0])))

    def norm(self, x: str, name: str, width: int) -> str:
        """LayerNorm in nine nodes."""
        centered = self.op("Sub", x, self.op("ReduceMean", x, axes=[-1]))
        squares = self.op("Pow", centered, self.const(2.0, np.float32))
        variance = self.op("ReduceMean", squares, axes=[-1])
        root = self.op("Sqrt", self.op("Add", variance, self.const(1e-5, np.float32)))
        scaled = self.op(
            "Mul", self.op("Div", centered, root), self.weight(f"{name}.g", width, scale=1)
        )
        return str(self.op("Add", scaled, self.weight(f"{name}.b", width)))

    def linear(self, x: str, name: str, wide: int, out: int) -> str:
        """MatMul and Add."""
        product = self.op("MatMul", x, self.weight(f"{name}.w", wide, out))
        return str(self.op("Add", product, self.weight(f"{name}.b", out)))


def write(path: Path, size: Size) -> None:
    """Write the model file and its data file (``PATH.data``)."""
    location = f"{path.name}.data"
    with open(path.parent / location, "wb") as data:
        writer = Writer(location, data)
        inputs, outputs = _network(writer, size)
    graph = helper.make_graph(writer.nodes, "gpt", inputs, outputs, writer.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())


def _network(w: Writer, size: Size) -> tuple[list[Any], list[Any]]:
    head = size.width // size.heads
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])]
    outputs = [
        helper.make_tensor_value_info(
            "logits", TensorProto.FLOAT, ["batch", "length", size.vocabulary]
        )
    ]
    positions = w.op("ConstantOfShape", w.const([1, 1, size.positions, size.positions]),
                     value=numpy_helper.from_array(np.ones(1, np.float32)))  # fmt: skip
    causal = w.op("Cast", w.op("Trilu", positions, upper=0), to=TensorProto.BOOL)
    length = w.dim("ids", 1)
    past = w.dim("past_key_0", 2)
    total = w.op("Add", past, length)
    step = w.const([1])
    row = w.op("Range", w.op("Squeeze", past), w.op("Squeeze", total), w.op("Squeeze", step))
    x = w.op(
        "Add",
        w.op("Gather", w.weight("wte", size.vocabulary, size.width), "ids"),
        w.op("Gather", w.weight("wpe", size.positions, size.width), row),
    )
    mask = w.op("Slice", causal, past, total, w.const([2]), step)
    mask = w.op("Slice", mask, w.const([0]), total, w.const([3]), step)
    for i in range(size.layers):
        for kind in ("key", "value"):
            shape: list[str | int | None] = ["batch", size.heads, "past", head]
            inputs.append(
                helper.make_tensor_value_info(f"past_{kind}_{i}", TensorProto.FLOAT, shape)
            )
            shape = ["batch", size.heads, "total", head]
            outputs.append(
                helper.make_tensor_value_info(f"present_{kind}_{i}", TensorProto.FLOAT, shape)
            )
        x = _layer(w, x, i, size, mask)
    w.op("MatMul", w.norm(x, "final", size.width), w.weight("head", size.width, size.vocabulary))
    w.nodes[-1].output[0] = "logits"
    return inputs, outputs


def _layer(w: Writer, x: str, i: int, size: Size, mask: str) -> str:
    width, head = size.width, size.width // size.heads
    name = f"h{i}"
    y = w.norm(x, f"{name}.ln1", width)
    qkv = w.linear(y, f"{name}.qkv", width, 3 * width)
    parts = w.op("Split", qkv, w.const([width] * 3), outputs=3, axis=2)

    def heads(value: str) -> str:
        dims = (w.dim(value, 0), w.dim(value, 1), w.const([size.heads]), w.const([head]))
        reshaped = w.op("Reshape", value, w.op("Concat", *dims, axis=0))
        return str(w.op("Transpose", reshaped, perm=[0, 2, 1, 3]))

    q, k, v = map(heads, parts)
    present = []
    for kind, value in (("key", k), ("value", v)):
        w.op("Concat", f"past_{kind}_{i}", value, axis=2)
        w.nodes[-1].output[0] = f"present_{kind}_{i}"
        present.append(f"present_{kind}_{i}")
    scores = w.op("MatMul", q, w.op("Transpose", present[0], perm=[0, 1, 3, 2]))
    scores = w.op("Div", scores, w.op("Sqrt", w.const(float(head), np.float32)))
    scores = w.op("Where", mask, scores, w.const(-1e4, np.float32))
    y = w.op("MatMul", w.op("Softmax", scores, axis=-1), present[1])
    y = w.op("Transpose", y, perm=[0, 2, 1, 3])
    back = w.op("Concat", w.dim(y, 0), w.dim(y, 1), w.const([width]), axis=0)
    y = w.linear(w.op("Reshape", y, back), f"{name}.out", width, width)
    x = w.op("Add", x, w.op("Identity", y))
    y = w.linear(w.norm(x, f"{name}.ln2", width), f"{name}.up", width, 4 * width)
    gate = w.op("Erf", w.op("Div", y, w.const(np.sqrt(2.0), np.float32)))
    y = w.op("Mul", y, w.op("Add", gate, w.const(1.0, np.float32)))
    y = w.op("Mul", y, w.const(0.5, np.float32))
    return str(w.op("Add", x, w.linear(y, f"{name}.down", 4 * width, width)))


def feeds(size: Size, batch: int, length: int, past: int) -> dict[str, np.ndarray]:
    """Random tokens and caches.

    Args:
        size: Dimensions of the network.
        batch: Sequences.
        length: New tokens.
        past: Tokens in the cache.
    """
    rng = np.random.default_rng(batch * 100 + length)
    result: dict[str, np.ndarray] = {"ids": rng.integers(0, size.vocabulary, (batch, length))}
    shape = (batch, size.heads, past, size.width // size.heads)
    for i in range(size.layers):
        for kind in ("key", "value"):
            result[f"past_{kind}_{i}"] = rng.standard_normal(shape, np.float32)
    return result
