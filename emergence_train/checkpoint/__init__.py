"""Checkpoints: their files, saving and loading an engine over all ranks, and retention."""
