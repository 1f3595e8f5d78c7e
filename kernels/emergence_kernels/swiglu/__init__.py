"""SwiGLU's activation."""
