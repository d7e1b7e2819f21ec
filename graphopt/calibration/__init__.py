"""Sample data: where it comes from and how it is turned into inputs of a model."""

from graphopt.calibration.sources import Samples, from_batches, load_data

__all__ = ["Samples", "from_batches", "load_data"]
