"""Optimizers and the learning rate. schedule needs no torch: the analyses plan with it."""
