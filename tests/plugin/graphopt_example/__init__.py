"""Passes of the distribution graphopt-example."""

from graphopt_example.double_negation import DropDoubleNegation

PASSES = (DropDoubleNegation,)
PIPELINES = {"example": "drop-double-negation{ops=neg}"}
