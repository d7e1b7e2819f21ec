"""Passes that remove what a model does not need, without changing a bit of what it computes."""

from graphopt.passes.cleanup.deduplicate_initializers import DeduplicateInitializers
from graphopt.passes.cleanup.eliminate_common_subexpressions import EliminateCommonSubexpressions
from graphopt.passes.cleanup.eliminate_dead import EliminateDead
from graphopt.passes.cleanup.eliminate_identity import EliminateIdentity
from graphopt.passes.cleanup.eliminate_noop import EliminateNoop
from graphopt.passes.cleanup.eliminate_real_noop import EliminateRealNoop
from graphopt.passes.cleanup.eliminate_sequences import EliminateSequences
from graphopt.passes.cleanup.freeze_inputs import FreezeInputs
from graphopt.passes.cleanup.remove_unused_opsets import RemoveUnusedOpsets

__all__ = [
    "DeduplicateInitializers",
    "EliminateCommonSubexpressions",
    "EliminateDead",
    "EliminateIdentity",
    "EliminateNoop",
    "EliminateRealNoop",
    "EliminateSequences",
    "FreezeInputs",
    "RemoveUnusedOpsets",
]
