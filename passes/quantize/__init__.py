"""Passes about integers instead of floating-point numbers."""

from graphopt.passes.quantize.channels_last import ChannelsLast
from graphopt.passes.quantize.drop_qdq import DropQdq
from graphopt.passes.quantize.equalize import EqualizeChannels
from graphopt.passes.quantize.lower_qdq import LowerQdq
from graphopt.passes.quantize.pad_channels import PadChannels
from graphopt.passes.quantize.place_qdq import PlaceQdq
from graphopt.passes.quantize.quantize_bias import QuantizeBias
from graphopt.passes.quantize.quantize_int8 import QuantizeInt8
from graphopt.passes.quantize.repair_qdq import RepairQdq
from graphopt.passes.quantize.widen_qdq import WidenQdq

__all__ = [
    "ChannelsLast",
    "DropQdq",
    "EqualizeChannels",
    "LowerQdq",
    "PadChannels",
    "PlaceQdq",
    "QuantizeBias",
    "QuantizeInt8",
    "RepairQdq",
    "WidenQdq",
]
