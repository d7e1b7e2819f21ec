"""Quantization: parameters, what can be quantized, how it is written, and what pays."""
