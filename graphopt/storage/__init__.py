"""Storage: constants in fewer bytes, which ONNX Runtime decodes when it loads a model."""

from graphopt.storage.emit import MIN_OPSET, OPERATORS, Emitter
from graphopt.storage.packing import index_bits
from graphopt.storage.sparse import Code, Coding, Layout, decode, encode

__all__ = [
    "MIN_OPSET", "OPERATORS", "Code", "Coding", "Emitter", "Layout", "decode", "encode",
    "index_bits",
]  # fmt: skip
