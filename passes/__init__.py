"""The built-in passes and pipelines: the one table.

A pass is one file in one of the folders; it becomes known by its entry here and by nothing else.
"""

from graphopt.passes.cleanup import (
    DeduplicateInitializers,
    EliminateCommonSubexpressions,
    EliminateDead,
    EliminateIdentity,
    EliminateNoop,
    EliminateRealNoop,
    EliminateSequences,
    FreezeInputs,
    RemoveUnusedOpsets,
)
from graphopt.passes.external import Onnxsim
from graphopt.passes.factorize import ConvertDepthwise, Factorize, SimplifyConvolutions
from graphopt.passes.fold import FoldBranches, FoldConstants, FoldShapes, InferShapes
from graphopt.passes.fusion import (
    FuseAffine,
    FuseBatchNorm,
    FuseClips,
    FuseConstantChains,
    FuseGemm,
    FuseInputAffine,
    FusePad,
)
from graphopt.passes.layout import (
    FuseCasts,
    FuseConcats,
    FuseReshapes,
    FuseSlices,
    FuseTransposes,
)
from graphopt.passes.legalize import ConvertOpset, FixShapes, LowerOps
from graphopt.passes.precision import ConvertFp16
from graphopt.passes.pruning import PruneChannels, PruneHeads, PruneLayers
from graphopt.passes.quantize import (
    ChannelsLast,
    DropQdq,
    EqualizeChannels,
    LowerQdq,
    PadChannels,
    PlaceQdq,
    QuantizeBias,
    QuantizeInt8,
    RepairQdq,
    WidenQdq,
)
from graphopt.passes.sharing import CompactStorage, ShareWeights, TieWeights
from graphopt.passes.sparsity import Sparsify

__all__ = ["PASSES", "PIPELINES"]

PASSES = (
    EliminateDead,
    EliminateIdentity,
    EliminateNoop,
    EliminateRealNoop,
    EliminateSequences,
    EliminateCommonSubexpressions,
    DeduplicateInitializers,
    RemoveUnusedOpsets,
    FreezeInputs,
    FoldConstants,
    FoldShapes,
    FoldBranches,
    InferShapes,
    FuseTransposes,
    FuseReshapes,
    FuseCasts,
    FuseConcats,
    FuseSlices,
    FuseBatchNorm,
    FuseAffine,
    FuseInputAffine,
    FuseConstantChains,
    FusePad,
    FuseGemm,
    FuseClips,
    Onnxsim,
    FixShapes,
    ConvertOpset,
    LowerOps,
    ConvertFp16,
    EqualizeChannels,
    QuantizeInt8,
    RepairQdq,
    PlaceQdq,
    WidenQdq,
    DropQdq,
    QuantizeBias,
    LowerQdq,
    ChannelsLast,
    PadChannels,
    PruneChannels,
    PruneHeads,
    PruneLayers,
    SimplifyConvolutions,
    ConvertDepthwise,
    Factorize,
    Sparsify,
    TieWeights,
    ShareWeights,
    CompactStorage,
)

PIPELINES = {
    "O0": "",
    # What is of no use to anybody.
    "cleanup": (
        "eliminate-dead,eliminate-identity,eliminate-noop,deduplicate-initializers,"
        "eliminate-common-subexpressions,remove-unused-opsets"
    ),
    # What can be computed now; a folded branch or shape lets the next round fold more.
    "fold": (
        "fixpoint{max=4}(fold-shapes,fold-constants,fold-branches,infer-shapes,eliminate-identity,"
        "eliminate-noop,eliminate-sequences,fuse-transposes,fuse-reshapes,fuse-casts,fuse-concats,fuse-slices)"
    ),
    # The same bits.
    "O1": "eliminate-dead,fold,cleanup",
    # The same function of real numbers.
    "O2": (
        "O1,fixpoint{max=4}(eliminate-real-noop,fuse-pad,fuse-batch-norm,fuse-affine,"
        "fuse-input-affine,fuse-constant-chains,fuse-gemm,fuse-clips),cleanup"
    ),
    # What a target takes, whatever it costs.
    "legalize": "convert-opset,lower-ops,fold,cleanup",
    # Anyone's quantized model in the form that the target computes fast. Numbers change only where
    # a quantizer is missing, and its range is learned from samples.
    "repair": (
        "fixpoint{max=4}(repair-qdq,deduplicate-initializers,eliminate-common-subexpressions),"
        "place-qdq,repair-qdq,deduplicate-initializers,eliminate-dead"
    ),
    # Smaller numbers: both need a target that computes on them, int8 needs samples.
    "int8": "O2,quantize-int8",
    "fp16": "O2,convert-fp16",
    # Fewer bytes of the same numbers.
    "size": "O2,tie-weights,compact-storage",
    # As few bytes as leave the outputs much the same; needs samples.
    "tiny": "O2,tie-weights,share-weights{sqnr=18},compact-storage",
    # All there is, whatever time it takes.
    "O3": "O2,onnxsim,fixpoint{max=3}(O1,O2)",
}
