"""Shards -> batches. Knows nothing of models.

In the order a sample passes through: tar and index (which bytes are which sample), manifest (which shards there are,
here or, by location, fetch, cache and remote, elsewhere) -> order (which sample when) -> balancing (on which rank) ->
stream (reading) -> sample (its fields, checked) -> text and images (what the model sees) -> collator and batch (packed
tensors) -> loader. `datasets` opens what a recipe names.
"""
