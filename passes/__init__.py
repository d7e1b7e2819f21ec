"""The built-in passes and pipelines: the one table."""
