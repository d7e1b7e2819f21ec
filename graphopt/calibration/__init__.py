"""Sample data: where it comes from and how it is turned into inputs of a model."""

from graphopt.calibration.sources import Samples, load_data

__all__ = ["Samples", "load_data"]
