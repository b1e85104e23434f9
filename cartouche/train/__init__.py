"""Training: one loop (loop.py), the losses (tasks.py), checkpoints, the journal, and `cartouche train` (run.py)."""
