"""Quantization: parameters, what can be quantized, how it is written, and what pays."""

from graphopt.quant.emit import Quantized, emit_static
from graphopt.quant.measure import Candidate
from graphopt.quant.params import QParams, from_range, from_weight
from graphopt.quant.quantizer import Options, Outcome, quantize
from graphopt.quant.static import StaticForm
from graphopt.quant.units import Unit, Units

__all__ = [
    "Candidate",
    "Options",
    "Outcome",
    "QParams",
    "Quantized",
    "StaticForm",
    "Unit",
    "Units",
    "emit_static",
    "from_range",
    "from_weight",
    "quantize",
]
