"""RMSNorm with an optional fused residual addition."""
