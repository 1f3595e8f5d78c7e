"""The losses of a linear head: linear_cross_entropy, one loss a token, and position_loss, the training loss."""
