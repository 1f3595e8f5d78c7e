"""A linear layer whose products have fp8 operands."""
