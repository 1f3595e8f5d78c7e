"""The gated feed-forward layer's products with SwiGLU inside."""
