"""The program that the onnxsim pass starts: runs onnx-simplifier on the model in a folder.

Reads ``model.onnx`` and ``options.json`` (arguments of ``onnxsim.simplify``) from the folder that
is its argument, writes ``result.onnx`` and ``status.json``, which holds an ``error`` if there was
one. It imports nothing of graphopt.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import onnx

__all__ = ["main", "prepare", "restore"]

_INLINE_BYTES = 64 << 20


def main(folder: Path) -> None:
    """Simplify ``folder/model.onnx``; whatever happens is in ``folder/status.json`` afterwards."""
    try:
        status = _run(folder)
    except (Exception, SystemExit) as e:  # noqa: BLE001 - reported to the process that started this
        lines = str(e).strip().splitlines()
        status = {"error": f"{type(e).__name__}: {lines[0] if lines else ''}"}
    (folder / "status.json").write_text(json.dumps(status), encoding="utf-8")


def _run(folder: Path) -> dict[str, Any]:
    for needed in ("onnxruntime", "onnxsim"):
        # Asked before the import, since some versions of onnxsim install what they miss.
        if importlib.util.find_spec(needed) is None:
            return {"error": f"{needed} is not installed"}
    import onnxsim

    source, target = folder / "model.onnx", folder / "result.onnx"
    proto = onnx.load(source, load_external_data=False)
    defaults = prepare(proto)
    onnx.save(proto, source)
    options = json.loads((folder / "options.json").read_text(encoding="utf-8"))
    options |= {"output_path": str(target), "certify": False}
    known = inspect.signature(onnxsim.simplify).parameters
    result, ok = onnxsim.simplify(str(source), **{k: v for k, v in options.items() if k in known})
    if not ok:
        return {"error": "its check of the result failed"}
    if not target.exists():
        onnx.save(result, target)
    del result
    if target.stat().st_size > _INLINE_BYTES:
        # The process that reads this maps the weights instead of reading them.
        proto = onnx.load(target)
        onnx.save(proto, target, save_as_external_data=True, location="result.data")
        del proto
    if defaults:
        proto = onnx.load(target, load_external_data=False)
        restore(proto, defaults)
        onnx.save(proto, target)
    return {}


def prepare(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Take out of a model what onnx-simplifier is known to mistake, in place.

    * A literal -1 in the shape of an input stands for a size that varies. It computes with -1.
    * Default values of inputs may be overridden. It takes them for constants.
    * A missing import of com.microsoft, which ONNX Runtime forgives, makes it refuse the model.

    Returns:
        The default values, for :func:`restore`.
    """
    for info in proto.graph.input:
        for dim in info.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value < 0:
                dim.ClearField("dim_value")
    inputs = {info.name for info in proto.graph.input}
    defaults = [t for t in proto.graph.initializer if t.name in inputs]
    kept = [t for t in proto.graph.initializer if t.name not in inputs]
    if defaults:
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)
    if all(o.domain != "com.microsoft" for o in proto.opset_import):
        proto.opset_import.add(domain="com.microsoft", version=1)
    return defaults


def restore(proto: onnx.ModelProto, defaults: list[onnx.TensorProto]) -> None:
    """Give inputs their default values again, in place."""
    proto.graph.initializer.extend(defaults)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
