"""Structured pruning: which channels go, how they are cut out, and what is left of the quality."""
