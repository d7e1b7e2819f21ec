"""What an export consists of: sizes of open dimensions, a folder, a manifest, a script."""

from graphopt.bundle.folder import check_folder, write_folder
from graphopt.bundle.manifest import SCHEMA, describe
from graphopt.bundle.sizes import Shapes, choose_sizes

__all__ = ["SCHEMA", "Shapes", "check_folder", "choose_sizes", "describe", "write_folder"]
