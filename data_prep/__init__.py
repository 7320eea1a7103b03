"""Raw data set -> WebDataset shards with a manifest, and the tiny models that a laptop needs to try them."""
