"""A trained model -> scores: decoding, reading the answer out of the text, the table."""
