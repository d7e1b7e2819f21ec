"""Passes about integers instead of floating-point numbers."""

from graphopt.passes.quantize.drop_qdq import DropQdq
from graphopt.passes.quantize.place_qdq import PlaceQdq
from graphopt.passes.quantize.quantize_bias import QuantizeBias
from graphopt.passes.quantize.repair_qdq import RepairQdq
from graphopt.passes.quantize.widen_qdq import WidenQdq

__all__ = ["DropQdq", "PlaceQdq", "QuantizeBias", "RepairQdq", "WidenQdq"]
