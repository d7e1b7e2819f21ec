"""The optimizers under test behind one call: read a model file, optimize it, write the result.

Each tool runs as its own documentation says to run it by default. Imports are lazy, so that a
worker can import a tool first and time only the work.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Options:
    """What a run may vary.

    Attributes:
        pipeline: graphopt's pipeline text.
        oracle: graphopt's oracle mode: ``off``, ``end`` or ``each``.
        external: Write the weights to a data file beside the model.
    """

    pipeline: str = "O2"
    oracle: Literal["off", "end", "each"] = "off"
    external: bool = False

    def to_json(self) -> dict[str, Any]:
        """The options as plain data, to hand to another process."""
        return asdict(self)


Optimize = Callable[[Path, Path, Options], dict[str, Any]]


@dataclass(frozen=True)
class Tool:
    """One optimizer.

    Attributes:
        name: Name in tables.
        package: Distribution whose version is reported.
        modules: Modules to import before timing.
        run: Optimizes source to destination; returns remarks as data.
    """

    name: str
    package: str
    modules: tuple[str, ...]
    run: Optimize

    def preload(self) -> None:
        """Import everything the tool needs."""
        for module in self.modules:
            importlib.import_module(module)


def _identity(source: Path, target: Path, options: Options) -> dict[str, Any]:
    import onnx

    model = onnx.load(str(source))
    _save(model, target, options)
    return {}


def _save(model: Any, target: Path, options: Options) -> None:
    """Save a ModelProto, with external data where asked."""
    import onnx

    if options.external:
        onnx.save(model, str(target), save_as_external_data=True, location=f"{target.name}.data")
    else:
        onnx.save(model, str(target))


def _graphopt(source: Path, target: Path, options: Options) -> dict[str, Any]:
    import graphopt

    result = graphopt.optimize(str(source), pipeline=options.pipeline, oracle=options.oracle)
    graphopt.save(result.model, str(target), external_data=True if options.external else None)
    report = result.report.to_json()
    reverted = [
        f"{record.get('text')}: {record.get('reason')}"
        for record in report.get("passes", [])
        if record.get("status") == "reverted"
    ]
    return {
        "reverted": reverted,
        "remarks": report.get("remarks", []),
        "oracle": report.get("oracle"),
    }


def _onnxsim(source: Path, target: Path, options: Options) -> dict[str, Any]:
    import onnxsim

    if options.external:
        onnxsim.simplify(str(source), output_path=str(target))
        return {}
    model, _ = onnxsim.simplify(str(source))
    _save(model, target, options)
    return {}


def _onnxslim(source: Path, target: Path, options: Options) -> dict[str, Any]:
    import onnxslim

    model = onnxslim.slim(str(source))
    if model is None:
        raise RuntimeError("onnxslim.slim returned None")
    _save(model, target, options)
    return {}


def _onnxoptimizer(source: Path, target: Path, options: Options) -> dict[str, Any]:
    import onnx
    import onnxoptimizer

    _save(onnxoptimizer.optimize(onnx.load(str(source)), fixed_point=True), target, options)
    return {}


def _save_ir(model: Any, target: Path, options: Options) -> None:
    import onnx_ir

    onnx_ir.save(
        model, str(target), external_data=f"{target.name}.data" if options.external else None
    )


def _onnxscript(source: Path, target: Path, options: Options) -> dict[str, Any]:
    import onnx_ir
    from onnxscript import optimizer

    model = onnx_ir.load(str(source))
    _save_ir(optimizer.optimize(model), target, options)
    return {}


def _onnxscript_ort(source: Path, target: Path, options: Options) -> dict[str, Any]:
    import onnx_ir
    from onnxscript.rewriter import ort_fusions

    model = onnx_ir.load(str(source))
    fused, _ = ort_fusions.optimize_for_ort(model)
    _save_ir(fused, target, options)
    return {}


def _onnx_ir(source: Path, target: Path, options: Options) -> dict[str, Any]:
    import onnx_ir
    from onnx_ir.passes import Sequential
    from onnx_ir.passes import common as c

    passes = Sequential(
        c.InlinePass(),
        c.IdentityEliminationPass(),
        c.LiftConstantsToInitializersPass(),
        c.LiftSubgraphInitializersToMainGraphPass(),
        c.DeduplicateInitializersPass(),
        c.CommonSubexpressionEliminationPass(),
        c.RemoveUnusedNodesPass(),
        c.RemoveUnusedFunctionsPass(),
        c.RemoveUnusedOpsetsPass(),
        c.OutputFixPass(),
        c.NameFixPass(),
        c.TopologicalSortPass(),
    )
    _save_ir(passes(onnx_ir.load(str(source))).model, target, options)
    return {}


def _ort(level: str) -> Optimize:
    def run(source: Path, target: Path, options: Options) -> dict[str, Any]:
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.graph_optimization_level = getattr(
            ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}"
        )
        settings.optimized_model_filepath = str(target)
        settings.intra_op_num_threads = 1
        settings.log_severity_level = 4
        if options.external:
            key = "session.optimized_model_external_initializers_file_name"
            settings.add_session_config_entry(key, f"{target.name}.data")
        ort.InferenceSession(str(source), settings, providers=["CPUExecutionProvider"])
        return {}

    return run


def _copy(source: Path, target: Path, options: Options) -> dict[str, Any]:
    shutil.copyfile(source, target)
    return {}


_ORT_MODULES = ("numpy", "onnxruntime")
TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool(
            "graphopt",
            "graphopt",
            ("onnx", "onnx_ir", "onnxruntime", "graphopt", "graphopt.ir"),
            _graphopt,
        ),
        Tool("onnxsim", "onnxsim", ("onnx", "onnxruntime", "onnxsim"), _onnxsim),
        Tool("onnxslim", "onnxslim", ("onnx", "onnxruntime", "onnxslim"), _onnxslim),
        Tool("onnxoptimizer", "onnxoptimizer", ("onnx", "onnxoptimizer"), _onnxoptimizer),
        Tool("onnxscript", "onnxscript", ("onnx_ir", "onnxscript.optimizer"), _onnxscript),
        Tool(
            "onnxscript_ort",
            "onnxscript",
            ("onnx_ir", "onnxscript.rewriter.ort_fusions"),
            _onnxscript_ort,
        ),
        Tool("onnx_ir", "onnx-ir", ("onnx_ir", "onnx_ir.passes.common"), _onnx_ir),
        Tool("ort_basic", "onnxruntime", _ORT_MODULES, _ort("BASIC")),
        Tool("ort_extended", "onnxruntime", _ORT_MODULES, _ort("EXTENDED")),
        Tool("ort_all", "onnxruntime", _ORT_MODULES, _ort("ALL")),
        Tool("identity", "onnx", ("onnx",), _identity),
        Tool("copy", "onnx", (), _copy),
    )
}


def pick(listed: list[str]) -> list[Tool]:
    """The tools of these names.

    Raises:
        SystemExit: One of them does not exist; the message lists those that do.
    """
    unknown = [name for name in listed if name not in TOOLS]
    if unknown:
        raise SystemExit(f"no tool named {', '.join(unknown)}; there are: {', '.join(TOOLS)}")
    return [TOOLS[name] for name in listed]
