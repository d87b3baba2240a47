"""The foreach engine: the recording replayed over lists of tensors."""
