"""Sample data, and what is learned of a model by running it on them."""

from graphopt.calibration.collect import Watch, collect
from graphopt.calibration.executors import open_executor
from graphopt.calibration.fitting import fitting
from graphopt.calibration.histogram import Histogram
from graphopt.calibration.images import Preprocessing
from graphopt.calibration.observers import ChannelStats, MinMax, MovingAverage, Observer
from graphopt.calibration.ranges import METHODS, find_range, observer_for
from graphopt.calibration.samples import Samples
from graphopt.calibration.sources import from_batches, load_data

__all__ = [
    "METHODS",
    "ChannelStats",
    "Histogram",
    "MinMax",
    "MovingAverage",
    "Observer",
    "Preprocessing",
    "Samples",
    "Watch",
    "collect",
    "find_range",
    "fitting",
    "from_batches",
    "load_data",
    "observer_for",
    "open_executor",
]
