"""The IR: onnx_ir's classes in normal form, and what passes need besides.

Nothing outside this package imports onnx or onnx_ir, so the storage can be replaced.
"""

from onnx_ir import (
    Attr,
    AttributeType,
    DataType,
    Graph,
    LazyTensor,
    Model,
    Node,
    Shape,
    StringTensor,
    SymbolicDim,
    Tensor,
    TensorProtocol,
    TensorType,
    Value,
    tensor,
)

from graphopt.ir.check import check, interface_difference
from graphopt.ir.convert import convert_opset, function_body
from graphopt.ir.graph import (
    all_graphs,
    all_nodes,
    array,
    attr,
    const,
    dims,
    gc_paused,
    inputs,
    is_deterministic,
    is_pure,
    make_attr,
    matches,
    opset,
    rank,
    static_shape,
    subgraphs,
    use_count,
)
from graphopt.ir.io import clone, load, parse_text
from graphopt.ir.network import to_networkx
from graphopt.ir.origin import opaque, remarks
from graphopt.ir.proto import nbytes, source_bytes, to_bytes, to_proto
from graphopt.ir.save import atomic_write, save
from graphopt.ir.schema import lookup as schema
from graphopt.ir.segment import segment
from graphopt.ir.shapes import infer_shapes
from graphopt.ir.text import dump
from graphopt.ir.verify import verify

__all__ = [
    "Attr",
    "AttributeType",
    "DataType",
    "Graph",
    "LazyTensor",
    "Model",
    "Node",
    "Shape",
    "StringTensor",
    "SymbolicDim",
    "Tensor",
    "TensorProtocol",
    "TensorType",
    "Value",
    "all_graphs",
    "all_nodes",
    "array",
    "atomic_write",
    "attr",
    "check",
    "clone",
    "const",
    "convert_opset",
    "dims",
    "dump",
    "function_body",
    "gc_paused",
    "infer_shapes",
    "inputs",
    "interface_difference",
    "is_deterministic",
    "is_pure",
    "load",
    "make_attr",
    "matches",
    "nbytes",
    "opaque",
    "opset",
    "parse_text",
    "rank",
    "remarks",
    "save",
    "schema",
    "segment",
    "source_bytes",
    "static_shape",
    "subgraphs",
    "tensor",
    "to_bytes",
    "to_networkx",
    "to_proto",
    "use_count",
    "verify",
]
