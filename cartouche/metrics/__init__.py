"""Metrics: float64 arithmetic on labels, boxes, masks and strings; no nets, no downloads, no Java."""
