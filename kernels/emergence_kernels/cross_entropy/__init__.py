"""The losses of a linear head: linear_cross_entropy, one loss per token, and position_loss, the training loss."""
