"""Passes that let one operator do the work of several."""

from graphopt.passes.fusion.fuse_affine import FuseAffine
from graphopt.passes.fusion.fuse_batch_norm import FuseBatchNorm
from graphopt.passes.fusion.fuse_clips import FuseClips
from graphopt.passes.fusion.fuse_constant_chains import FuseConstantChains
from graphopt.passes.fusion.fuse_gemm import FuseGemm
from graphopt.passes.fusion.fuse_input_affine import FuseInputAffine
from graphopt.passes.fusion.fuse_pad import FusePad

__all__ = [
    "FuseAffine",
    "FuseBatchNorm",
    "FuseClips",
    "FuseConstantChains",
    "FuseGemm",
    "FuseInputAffine",
    "FusePad",
]
