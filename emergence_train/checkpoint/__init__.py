"""Checkpoints: their files, saving and loading an engine over all ranks, and which of them stay."""
