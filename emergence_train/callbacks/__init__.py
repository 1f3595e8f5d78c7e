"""Callbacks of other trainers that record a run: a file each, which needs that trainer installed."""
