"""Removing channels, heads and layers."""
