"""Shards -> batches. Knows nothing of models.

In the order a sample passes through: manifest (which shards there are) -> order (which sample when) -> stream (tar
members) -> sample (checked fields) -> text and images (what the model sees) -> batch (packed tensors) -> loader.
"""
