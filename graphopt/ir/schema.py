"""Operator schemas: defaults, arity, attribute names, version of an operator in an opset."""

from __future__ import annotations

import functools
from typing import Any

import onnx

__all__ = ["check_call", "default", "first_opset", "lookup", "required"]


@functools.cache
def lookup(domain: str, op_type: str, version: int) -> onnx.defs.OpSchema | None:
    """Schema of an operator as of opset ``version`` of ``domain``, or None if there is none."""
    try:
        return onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None


@functools.cache
def first_opset(ir_version: int) -> int:
    """The first opset of the default domain that came with an IR version, 7 for the oldest ones."""
    released = [
        (came_with, opset)
        for (domain, opset), came_with in onnx.helper.OP_SET_ID_VERSION_MAP.items()
        if domain == "ai.onnx" and opset >= 7
    ]
    return min(
        (opset for came_with, opset in released if came_with >= ir_version),
        default=max(opset for _, opset in released),
    )


@functools.cache
def default(domain: str, op_type: str, version: int, name: str) -> Any:
    """Default of an attribute, lists as tuples and bytes as str; None where there is none."""
    schema = lookup(domain, op_type, version)
    attribute = None if schema is None else schema.attributes.get(name)
    if attribute is None or not attribute.default_value.name:
        return None
    value = onnx.helper.get_attribute_value(attribute.default_value)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return tuple(v.decode() if isinstance(v, bytes) else v for v in value)
    return value


@functools.cache
def required(domain: str, op_type: str, version: int) -> tuple[int, ...]:
    """Positions of the inputs that an operator cannot do without; none for unknown operators."""
    schema = lookup(domain, op_type, version)
    if schema is None:
        return ()
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    return tuple(i for i, p in enumerate(schema.inputs) if p.option == single)


def check_call(
    domain: str, op_type: str, version: int, n_inputs: int, attributes: frozenset[str]
) -> str | None:
    """Why a call of an operator is malformed, or None. Ops of foreign domains are not judged."""
    schema = lookup(domain, op_type, version)
    if schema is None:
        if domain == "":
            return f"opset {version} has no operator {op_type}"
        return None
    if not schema.min_input <= n_inputs <= schema.max_input:
        return f"{op_type} takes {schema.min_input} to {schema.max_input} inputs, not {n_inputs}"
    unknown = sorted(attributes - set(schema.attributes))
    if unknown:
        return f"{op_type} of opset {version} has no attribute {unknown[0]!r}"
    return None
