"""What forms of a model are worth: quality on samples, latency on the target."""

from graphopt.measure.allocate import aim, allocate
from graphopt.measure.budget import Budget
from graphopt.measure.goal import WORDS, Goal, Outcome, What, one_goal
from graphopt.measure.judge import Judge
from graphopt.measure.race import SCATTER, race, runs_here, seconds_of, settings
from graphopt.measure.tables import LatencyTable, machine_name, shaped
from graphopt.measure.trial import Quality, Trial, decibels, difference, square

__all__ = [
    "SCATTER",
    "WORDS",
    "Budget",
    "Goal",
    "Judge",
    "LatencyTable",
    "Outcome",
    "Quality",
    "Trial",
    "What",
    "aim",
    "allocate",
    "decibels",
    "difference",
    "machine_name",
    "one_goal",
    "race",
    "runs_here",
    "seconds_of",
    "settings",
    "shaped",
    "square",
]
