"""A trained model, looked into: which slots of the feed-forward memory fire on a word, as heat maps over the picture,
in tables and in TensorBoard."""
