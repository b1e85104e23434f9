"""Weights on disk: safetensors files, folders in the diffusers layout, graphs and the built-in model."""
