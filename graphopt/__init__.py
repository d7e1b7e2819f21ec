"""graphopt: a compiler for trained neural networks.

Names are loaded when they are first used, so that importing graphopt, and ``graphopt --help``, stay
free of onnx and onnxruntime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphopt import analyses, calibration, errors, ir, runtime, targets, testing
    from graphopt.api import bench, load, optimize, quantize, save, verify
    from graphopt.compressing import prune
    from graphopt.errors import (
        CalibrationError,
        ConfigError,
        ExportError,
        FrontendError,
        GoalNotMet,
        GraphOptError,
        NotApplicable,
        NumericalMismatch,
        PassFailed,
        PipelineSyntaxError,
        RuntimeUnavailable,
        SessionError,
        StructureError,
        TargetError,
        UnknownPassError,
        UnsupportedFeature,
        VerificationError,
    )
    from graphopt.exporting import Export, export
    from graphopt.manager.base import Exactness, Pass, Pipeline, RewritePass
    from graphopt.manager.bisect import BisectResult, bisect
    from graphopt.manager.config import Config, load_config
    from graphopt.manager.context import Context
    from graphopt.manager.instruments import Dump, Fuel, Instrument, Reproducer
    from graphopt.manager.registry import Registry, default_registry, register
    from graphopt.manager.report import PassRecord, Report, Size
    from graphopt.manager.runner import PassManager, Result
    from graphopt.manager.text import parse
    from graphopt.rewrite import (
        Const,
        Match,
        Op,
        Pattern,
        Replacement,
        Rewriter,
        RewriteStats,
        Rule,
        Var,
        apply_rules,
        rule,
    )
    from graphopt.targets import Target, Violation, check

__version__ = "0.1.0"

_HOME = {
    "api": ("bench", "load", "optimize", "quantize", "save", "verify"),
    "compressing": ("prune",),
    "errors": (
        "CalibrationError", "ConfigError", "ExportError", "FrontendError", "GoalNotMet",
        "GraphOptError", "NotApplicable", "NumericalMismatch", "PassFailed", "PipelineSyntaxError",
        "RuntimeUnavailable", "SessionError", "StructureError", "TargetError", "UnknownPassError",
        "UnsupportedFeature", "VerificationError",
    ),
    "exporting": ("Export", "export"),
    "manager.base": ("Exactness", "Pass", "Pipeline", "RewritePass"),
    "manager.bisect": ("BisectResult", "bisect"),
    "manager.config": ("Config", "load_config"),
    "manager.context": ("Context",),
    "manager.instruments": ("Dump", "Fuel", "Instrument", "Reproducer"),
    "manager.registry": ("Registry", "default_registry", "register"),
    "manager.report": ("PassRecord", "Report", "Size"),
    "manager.runner": ("PassManager", "Result"),
    "manager.text": ("parse",),
    "rewrite": (
        "Const", "Match", "Op", "Pattern", "Replacement", "RewriteStats", "Rewriter", "Rule", "Var",
        "apply_rules", "rule",
    ),
    "targets": ("Target", "Violation", "check"),
}  # fmt: skip
_MODULES = ("analyses", "calibration", "errors", "ir", "runtime", "targets", "testing")
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "BisectResult",
    "CalibrationError",
    "Config",
    "ConfigError",
    "Const",
    "Context",
    "Dump",
    "Exactness",
    "Export",
    "ExportError",
    "FrontendError",
    "Fuel",
    "GoalNotMet",
    "GraphOptError",
    "Instrument",
    "Match",
    "NotApplicable",
    "NumericalMismatch",
    "Op",
    "Pass",
    "PassFailed",
    "PassManager",
    "PassRecord",
    "Pattern",
    "Pipeline",
    "PipelineSyntaxError",
    "Registry",
    "Replacement",
    "Report",
    "Reproducer",
    "Result",
    "RewritePass",
    "RewriteStats",
    "Rewriter",
    "Rule",
    "RuntimeUnavailable",
    "SessionError",
    "Size",
    "StructureError",
    "Target",
    "TargetError",
    "UnknownPassError",
    "UnsupportedFeature",
    "Var",
    "VerificationError",
    "Violation",
    "__version__",
    "analyses",
    "apply_rules",
    "bench",
    "bisect",
    "calibration",
    "check",
    "default_registry",
    "errors",
    "export",
    "ir",
    "load",
    "load_config",
    "optimize",
    "parse",
    "prune",
    "quantize",
    "register",
    "rule",
    "runtime",
    "save",
    "targets",
    "testing",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"graphopt.{name}")
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'graphopt' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"graphopt.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
