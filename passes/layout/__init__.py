"""Passes that merge what only moves or reinterprets data."""

from graphopt.passes.layout.fuse_casts import FuseCasts
from graphopt.passes.layout.fuse_concats import FuseConcats
from graphopt.passes.layout.fuse_reshapes import FuseReshapes
from graphopt.passes.layout.fuse_slices import FuseSlices
from graphopt.passes.layout.fuse_transposes import FuseTransposes

__all__ = ["FuseCasts", "FuseConcats", "FuseReshapes", "FuseSlices", "FuseTransposes"]
