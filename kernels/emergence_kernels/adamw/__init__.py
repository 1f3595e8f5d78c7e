"""The update of AdamW over flat float32 tensors."""
