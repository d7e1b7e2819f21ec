"""Passes, pipelines and their text, the registry, the pass manager, and reports."""
