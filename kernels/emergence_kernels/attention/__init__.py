"""Scaled dot-product attention, alone and fused with the rotary embedding; own kernels, flash-attn and PyTorch's."""
