"""Random models for property tests: the shapes of graph that passes get wrong."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx_ir import Model

from graphopt.ir.io import load

__all__ = ["random_model"]

_UNARY = (
    "Relu", "Sigmoid", "Tanh", "Neg", "Abs", "Identity", "Identity", "Softplus", "Erf", "HardSwish",
)  # fmt: skip
_BINARY = ("Add", "Sub", "Mul", "Max", "Min")


def random_model(seed: int, *, nodes: int = 24) -> Model:
    """A random valid model, the same for the same seed.

    Convolutions with BatchNormalization, Gemm-like chains, transposes, reshapes by computed shapes,
    casts, slices, pads, concats, constants to fold, duplicates, dead code, If with constant and
    with computed conditions capturing outer values, Loop, shared weights, fan-out, a dynamic batch
    dimension and sometimes dynamic height and width, several outputs, nodes out of order.

    Args:
        seed: Any integer.
        nodes: Roughly how many operations the main graph gets.
    """
    return load(_Builder(random.Random(seed), nodes).build())


class _Builder:
    """Values are of two kinds: images ``[N,C,H,W]`` and rows ``[N,C]``, all float32."""

    def __init__(self, rng: random.Random, nodes: int) -> None:
        self.rng, self.count = rng, nodes
        self.np = np.random.default_rng(rng.randrange(1 << 30))
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray[Any, Any]] = {}
        self.images: list[tuple[str, int]] = []
        self.rows: list[tuple[str, int]] = []
        self.serial = 0

    def name(self, hint: str) -> str:
        self.serial += 1
        return f"{hint}{self.serial}"

    def weight(self, *shape: int) -> str:
        same = [k for k, w in self.weights.items() if w.shape == shape and w.dtype == np.float32]
        if same and self.rng.random() < 0.3:
            return self.rng.choice(same)
        return self.constant(self.np.normal(0, 0.5, shape).astype(np.float32))

    def constant(self, data: Any) -> str:
        array = np.asarray(data)
        name = self.name("w")
        if self.rng.random() < 0.3:
            tensor = numpy_helper.from_array(array, name)
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.weights[name] = array
        return name

    def op(self, op_type: str, *args: str, **attrs: Any) -> str:
        out = self.name(op_type[0].lower())
        self.nodes.append(helper.make_node(op_type, list(args), [out], **attrs))
        return out

    def image(self) -> tuple[str, int]:
        return self.rng.choice(self.images[-6:])

    def row(self) -> tuple[str, int]:
        return self.rng.choice(self.rows[-6:])

    def build(self) -> onnx.ModelProto:
        rng = self.rng
        channels = rng.choice([1, 2, 3])
        side: Any = rng.choice([5, 8, "H"])
        inputs = [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", channels, side, side]),
            helper.make_tensor_value_info("row", TensorProto.FLOAT, ["N", 4]),
        ]
        self.images, self.rows = [("image", channels)], [("row", 4)]
        kinds = [
            self.unary, self.unary, self.binary, self.conv, self.conv, self.linear, self.linear,
            self.transposes, self.reshape, self.folded, self.noop, self.concat, self.pool,
            self.branch, self.loop, self.duplicate, self.scale, self.pad,
        ]  # fmt: skip
        for _ in range(self.count):
            rng.choice(kinds)()
        used = {name for node in self.nodes for name in _reads(node)}
        made = [n for n, _ in (*self.images[1:], *self.rows[1:])]
        # What nothing reads is an output, and so is now and then something in the middle.
        outputs = [n for n in made if n not in used or rng.random() < 0.1]
        if not outputs:
            outputs = [self.op("Relu", "row")]
        nodes = list(self.nodes)
        if rng.random() < 0.2:
            rng.shuffle(nodes)
        graph = helper.make_graph(
            nodes,
            "random",
            inputs,
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
            [numpy_helper.from_array(w, k) for k, w in self.weights.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)

    def unary(self) -> None:
        pool = self.images if self.rng.random() < 0.5 else self.rows
        x, c = self.rng.choice(pool[-6:])
        pool.append((self.op(self.rng.choice(_UNARY), x), c))

    def binary(self) -> None:
        pool = self.images if self.rng.random() < 0.5 else self.rows
        x, c = self.rng.choice(pool[-6:])
        if pool is self.rows:
            same = [n for n, k in pool if k == c]
            pool.append((self.op(self.rng.choice(_BINARY), x, self.rng.choice(same)), c))
        else:
            pool.append((self.op(self.rng.choice(_BINARY), x, x), c))

    def conv(self) -> None:
        x, c = self.image()
        depthwise = self.rng.random() < 0.3
        k = c if depthwise else self.rng.choice([2, 3, 4])
        args = [x, self.weight(k, 1 if depthwise else c, 3, 3)]
        if self.rng.random() < 0.5:
            args.append(self.weight(k))
        y = self.op("Conv", *args, pads=[1, 1, 1, 1], group=c if depthwise else 1)
        if self.rng.random() < 0.7:
            variance = self.constant(self.np.uniform(0.5, 2, k).astype(np.float32))
            norm = [self.weight(k) for _ in range(3)]
            z = self.op("BatchNormalization", y, *norm, variance)
            if self.rng.random() < 0.15:
                self.images.append((y, k))  # a second use keeps it apart
            y = z
        self.images.append((y, k))

    def linear(self) -> None:
        x, c = self.row()
        k = self.rng.choice([3, 4, 5])
        if self.rng.random() < 0.5:
            y = self.op("Add", self.op("MatMul", x, self.weight(c, k)), self.weight(k))
        else:
            y = self.op("Gemm", x, self.weight(k, c), self.weight(k), transB=1)
        self.rows.append((y, k))

    def scale(self) -> None:
        x, c = self.image()
        shape = self.rng.choice([(1,), (c, 1, 1), (1, c, 1, 1), ()])
        op = self.rng.choice(["Mul", "Add", "Sub"])
        self.images.append((self.op(op, x, self.weight(*shape)), c))

    def transposes(self) -> None:
        x, c = self.image()
        y = self.op("Transpose", x, perm=[0, 2, 3, 1])
        y = self.op("Relu", y) if self.rng.random() < 0.3 else y
        self.images.append((self.op("Transpose", y, perm=[0, 3, 1, 2]), c))

    def reshape(self) -> None:
        x, c = self.row()
        n = self.op("Gather", self.op("Shape", x), self.constant(np.int64(0)), axis=0)
        n = self.op("Unsqueeze", n, self.constant(np.array([0], np.int64)))
        shape = self.op("Concat", n, self.constant(np.array([c, 1], np.int64)), axis=0)
        y = self.op("Reshape", x, shape)
        back = self.constant(np.array([0, -1], np.int64))
        self.rows.append((self.op("Reshape", y, back), c))

    def folded(self) -> None:
        x, c = self.row()
        k = self.op("Mul", self.weight(c), self.op("Exp", self.weight(c)))
        if self.rng.random() < 0.3:
            k = self.op(
                "Add", k, self.op("ConstantOfShape", self.constant(np.array([c], np.int64)))
            )
        self.rows.append((self.op("Add", x, k), c))

    def noop(self) -> None:
        x, c = self.image()
        kind = self.rng.randrange(5)
        if kind == 0:
            y = self.op("Cast", x, to=TensorProto.FLOAT)
        elif kind == 1:
            y = self.op("Dropout", x)
        elif kind == 2:
            y = self.op("Pad", x, self.constant(np.zeros(8, np.int64)))
        elif kind == 3:
            y = self.op("Mul", x, self.constant(np.ones((1,), np.float32)))
        else:
            ends = self.constant(np.array([2**62], np.int64))
            zero = self.constant(np.array([0], np.int64))
            y = self.op("Slice", x, zero, ends, self.constant(np.array([1], np.int64)))
        self.images.append((y, c))

    def concat(self) -> None:
        x, c = self.image()
        y = self.op("Relu", x)
        self.images.append((self.op("Concat", x, y, axis=1), 2 * c))

    def pool(self) -> None:
        x, c = self.image()
        y = self.op("GlobalAveragePool", x)
        self.rows.append((self.op("Flatten", y), c))

    def pad(self) -> None:
        x, c = self.image()
        pads = self.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
        y = self.op("Pad", x, pads)
        self.images.append((self.op("Conv", y, self.weight(2, c, 3, 3)), 2))

    def duplicate(self) -> None:
        x, c = self.row()
        a, b = self.op("Sigmoid", x), self.op("Sigmoid", x)
        self.rows.append((self.op("Add", a, b), c))
        self.op("Tanh", x)  # nobody uses it

    def branch(self) -> None:
        x, c = self.row()
        if self.rng.random() < 0.5:
            cond = self.constant(np.array(self.rng.random() < 0.5))
        else:
            total = self.op("ReduceSum", x, keepdims=0)
            cond = self.op("Greater", total, self.constant(np.float32(0)))
        other, _ = self.rng.choice([r for r in self.rows if r[1] == c])
        graphs = []
        for op in ("Add", "Mul"):
            t, y = self.name("t"), self.name("b")
            body = [
                helper.make_node("Identity", [x], [t]),
                helper.make_node(op, [t, other], [y]),
            ]
            info = helper.make_tensor_value_info(y, TensorProto.FLOAT, None)
            graphs.append(helper.make_graph(body, "branch", [], [info]))
        y = self.op("If", cond, then_branch=graphs[0], else_branch=graphs[1])
        self.rows.append((y, c))

    def loop(self) -> None:
        x, c = self.row()
        w = self.weight(c)
        names = {k: self.name(k) for k in ("i", "go", "state", "again", "next", "seen")}
        body = helper.make_graph(
            [
                helper.make_node("Identity", [names["go"]], [names["again"]]),
                helper.make_node("Add", [names["state"], w], [names["next"]]),
                helper.make_node("Tanh", [names["next"]], [names["seen"]]),
            ],
            "body",
            [
                helper.make_tensor_value_info(names["i"], TensorProto.INT64, []),
                helper.make_tensor_value_info(names["go"], TensorProto.BOOL, []),
                helper.make_tensor_value_info(names["state"], TensorProto.FLOAT, None),
            ],
            [
                helper.make_tensor_value_info(names["again"], TensorProto.BOOL, []),
                helper.make_tensor_value_info(names["next"], TensorProto.FLOAT, None),
                helper.make_tensor_value_info(names["seen"], TensorProto.FLOAT, None),
            ],
        )
        count = self.constant(np.int64(self.rng.choice([1, 2, 3])))
        y, scan = self.name("y"), self.name("scan")
        self.nodes.append(helper.make_node("Loop", [count, "", x], [y, scan], body=body))
        self.rows.append((y, c))


def _reads(node: onnx.NodeProto) -> list[str]:
    """Names a node reads, those its subgraphs capture included."""
    inner = [a.g for a in node.attribute if a.HasField("g")]
    return [*node.input, *(name for g in inner for n in g.node for name in _reads(n))]
