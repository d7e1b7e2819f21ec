"""Weights of few values: k-means, books, and books fitted to what layers compute."""
