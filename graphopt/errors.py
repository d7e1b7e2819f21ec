"""Every error graphopt raises on purpose.

::

    GraphOptError
    ├── FrontendError            the input model cannot be read
    │   └── UnsupportedFeature   it can be read, but a part of it has no representation
    ├── PipelineSyntaxError      pipeline text does not parse (message carries a caret)
    ├── UnknownPassError         no pass or pipeline of that name (message suggests one)
    ├── ConfigError              a configuration file or option is wrong
    ├── NotApplicable            a pass lacks something it needs; the pipeline goes on without it
    ├── GoalNotMet               no result is as good as was asked for
    ├── PassFailed               a pass raised or broke the model
    ├── VerificationError        a model is not what it has to be
    │   ├── StructureError       an invariant of the IR does not hold
    │   └── NumericalMismatch    outputs differ by more than the pass promised
    ├── CalibrationError         sample data is missing, malformed or does not fit the model
    ├── ExportError              the result cannot be written
    ├── TargetError              the target cannot run the model
    ├── RuntimeUnavailable       onnxruntime is not installed
    └── SessionError             onnxruntime refuses to load or run a model

Anything else that escapes graphopt is a bug in it.
"""

from __future__ import annotations

__all__ = [
    "CalibrationError",
    "ConfigError",
    "ExportError",
    "FrontendError",
    "GoalNotMet",
    "GraphOptError",
    "NotApplicable",
    "NumericalMismatch",
    "PassFailed",
    "PipelineSyntaxError",
    "RuntimeUnavailable",
    "SessionError",
    "StructureError",
    "TargetError",
    "UnknownPassError",
    "UnsupportedFeature",
    "VerificationError",
]


class GraphOptError(Exception):
    """Base class of every error graphopt raises on purpose."""


class FrontendError(GraphOptError):
    """The input model cannot be read; the message names the file and the reason."""


class UnsupportedFeature(FrontendError):
    """The model is readable but uses something the IR cannot represent."""


class PipelineSyntaxError(GraphOptError):
    """Pipeline text does not parse; the message points at the column."""


class UnknownPassError(GraphOptError):
    """No pass or named pipeline has this name; the message suggests the nearest one."""


class ConfigError(GraphOptError):
    """A configuration file, option or argument is wrong."""


class NotApplicable(GraphOptError):  # noqa: N818 - a statement about a pass, not an error of the user
    """A pass lacks something it needs, such as calibration data."""


class GoalNotMet(GraphOptError):  # noqa: N818 - names the outcome, not a failure
    """No result is as good as was asked for; the message tells what was missed, and by how much."""


class PassFailed(GraphOptError):  # noqa: N818 - reads as what happened
    """A pass raised an exception or left the model in a state that does not verify.

    Attributes:
        pass_text: The pass in pipeline syntax.
        reproducer: Folder that reproduces the failure, or None if none was written.
    """

    def __init__(self, message: str, *, pass_text: str = "", reproducer: str | None = None) -> None:
        super().__init__(message)
        self.pass_text = pass_text
        self.reproducer = reproducer


class VerificationError(GraphOptError):
    """A model does not satisfy what was required of it."""


class StructureError(VerificationError):
    """A structural invariant of the IR does not hold."""


class NumericalMismatch(VerificationError):
    """Outputs of two models differ by more than is allowed."""


class CalibrationError(GraphOptError):
    """Sample data is missing, malformed or does not fit the model's inputs."""


class ExportError(GraphOptError):
    """The result cannot be written; the destination is as it was."""


class TargetError(GraphOptError):
    """The target cannot run the model."""


class RuntimeUnavailable(GraphOptError):  # noqa: N818 - names the state, not a failure
    """onnxruntime is not installed."""


class SessionError(GraphOptError):
    """onnxruntime refuses to load or to run a model."""
