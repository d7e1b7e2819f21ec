"""Normal form: what every pass may rely on.

* No model-local functions (inlined on the protobuf, before the IR exists).
* ``Constant`` nodes are initializers, unless a graph output needs a node to produce it.
* Below IR version 4 initializers had to be listed as graph inputs; they are constants there, so the
  list is dropped. From IR version 4 on such inputs are defaults that callers may override: they
  stay inputs and are not constant.
* Every value that something uses is named, and names are unique over all scopes. So are unused
  outputs of operators that count their outputs; an absent one would change what they compute.
* Standard operators have no absent inputs at the end of their lists.
* Nodes are topologically sorted; the default domain is ``""``; subgraphs carry the opset imports.
"""

from __future__ import annotations

import onnx
import onnx_ir as _ir
from onnx_ir import Graph, Model, Node, Value

from graphopt.errors import StructureError
from graphopt.ir import schema as _schema
from graphopt.ir.graph import all_graphs, constant_tensor, opset
from graphopt.ir.origin import origin

__all__ = ["normalize"]


def normalize(model: Model) -> None:
    """Bring ``model`` into normal form, in place.

    Raises:
        StructureError: The graph has a cycle.
        ValueError: The name of a value or of an operator is not UTF-8.
    """
    imports = model.opset_imports
    if "ai.onnx" in imports:
        version = imports.pop("ai.onnx")
        imports[""] = max(version, imports.get("", 0))
    if model.ir_version < 3:
        imports.setdefault("", 1)  # opsets came with version 3
    if model.ir_version < 4:
        _drop_listed_initializers(model)
    for graph in all_graphs(model):
        if graph is not model.graph:
            graph.opset_imports.update(imports)
        for node in graph:
            if node.domain == "ai.onnx":
                node.domain = ""
            _check_text(node.domain)
            _check_text(node.op_type)
            if not node.domain:
                _drop_absent(node)
        _lift_constants(graph)
    _unique_names(model)
    if not _is_sorted(model):
        try:
            model.graph.sort()
        except ValueError as e:
            raise StructureError("the graph has a cycle") from e


def _drop_absent(node: Node) -> None:
    """Forget inputs at the end that are absent: some readers take an empty name for a value."""
    size = len(node.inputs)
    while size and node.inputs[size - 1] is None:
        size -= 1
    if size < len(node.inputs):
        node.resize_inputs(size)


def _drop_listed_initializers(model: Model) -> None:
    graph = model.graph
    listed = [v for v in graph.inputs if v.is_initializer()]
    if listed:
        kept = [v for v in graph.inputs if not v.is_initializer()]
        graph.inputs.clear()
        graph.inputs.extend(kept)
    model.ir_version = 4


def _lift_constants(graph: Graph) -> None:
    lifted = []
    for node in graph:
        if node.op_type != "Constant" or node.domain != "":
            continue
        value = node.outputs[0]
        tensor = constant_tensor(node)
        if tensor is None or value.is_graph_output() or not value.name:
            continue
        lifted.append((node, value, tensor))
    for _node, value, tensor in lifted:
        constant = _ir.Value(
            name=value.name,
            type=_ir.TensorType(tensor.dtype),
            shape=_ir.Shape(tuple(tensor.shape.numpy())),
            const_value=tensor,
        )
        # A second value of the same name must not reach the initializers before the first has gone.
        value.name = None
        graph.register_initializer(constant)
        for use in tuple(value.uses()):
            use.node.replace_input_with(use.idx, constant)
    graph.remove([node for node, _, _ in lifted], safe=True)


def _unique_names(model: Model) -> None:
    taken: set[str] = set()
    seen: set[Value] = set()
    source = origin(model)
    counter = 0

    def visit(value: Value, *, used: bool) -> None:
        nonlocal counter
        if value in seen:
            return
        seen.add(value)
        if not value.name and not used:
            return
        name = base = value.name or "value"
        while name in taken:
            counter += 1
            name = f"{base}.{counter}"
        _check_text(name)
        taken.add(name)
        if name != value.name:
            if value.name in source.value_info:
                source.value_info.add(name)
            if value.name and (value.is_graph_input() or value.is_graph_output()):
                source.formal[name] = value.name
            _rename(value, name)

    for graph in all_graphs(model):
        for v in (*graph.inputs, *tuple(graph.initializers.values())):
            visit(v, used=True)
        for node in graph:
            for v in node.outputs:
                used = bool(v.name or v.uses()) or v.is_graph_output()
                visit(v, used=used or _counts_outputs(node))


def _counts_outputs(node: Node) -> bool:
    """Whether what a node computes depends on its number of outputs, used or not (Split, Loop)."""
    schema = _schema.lookup(node.domain, node.op_type, opset(node, node.domain))
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    return schema is not None and any(p.option == variadic for p in schema.outputs[-1:])


def _check_text(name: object) -> None:
    if not isinstance(name, str):  # protobuf hands out as bytes what is not UTF-8
        raise ValueError(f"the name {name!r} is not UTF-8")


def _rename(value: Value, name: str) -> None:
    tensor = value.const_value
    # onnx_ir renames the tensor along with its value, but tensors are shared between models.
    value.const_value = None
    value.name = name
    value.const_value = tensor


def _is_sorted(model: Model) -> bool:
    position: dict[Graph, dict[_ir.Node, int]] = {}
    for graph in all_graphs(model):
        position[graph] = {node: i for i, node in enumerate(graph)}
    # A use inside a subgraph counts as a use by the node that owns the subgraph.
    owner: dict[Graph, _ir.Node] = {}
    for graph in all_graphs(model):
        for node in graph:
            for a in node.attributes.values():
                if a.is_ref():
                    continue
                if a.type == _ir.AttributeType.GRAPH:
                    owner[a.as_graph()] = node
                elif a.type == _ir.AttributeType.GRAPHS:
                    owner.update(dict.fromkeys(a.as_graphs(), node))
    for graph, order in position.items():
        for node in graph:
            for value in node.inputs:
                producer = value.producer() if value is not None else None
                if producer is None or producer.graph is None:
                    continue
                user = node
                while user.graph is not producer.graph:
                    outer = owner.get(user.graph) if isinstance(user.graph, _ir.Graph) else None
                    if outer is None:
                        return True  # the verifier names values that are out of scope
                    user = outer
                target = order if producer.graph is graph else position[producer.graph]
                if target[producer] >= target[user]:
                    return False
    return True
