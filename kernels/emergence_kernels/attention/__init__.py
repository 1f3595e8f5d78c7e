"""Scaled dot-product attention, alone and fused with the rotary embedding; kernels of our own and of others."""
