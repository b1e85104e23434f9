"""Measuring: drawing and reading, each with its own metrics."""
