"""Storage: constants in fewer bytes, which ONNX Runtime decodes when it loads a model."""

from graphopt.storage.code import Book, Code, Layout, decode
from graphopt.storage.deflate import deflated_nbytes
from graphopt.storage.emit import MIN_OPSET, OPERATORS, Emitter
from graphopt.storage.encode import encode
from graphopt.storage.packing import index_bits
from graphopt.storage.rounding import distance, rounded

__all__ = [
    "MIN_OPSET", "OPERATORS", "Book", "Code", "Emitter", "Layout", "decode",
    "deflated_nbytes", "distance", "encode", "index_bits", "rounded",
]  # fmt: skip
