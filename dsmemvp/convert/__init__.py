"""Weights in the layouts of others -> Hugging Face folders and trained tensors of this package, one tensor at a time,
and the trained tensors back."""
