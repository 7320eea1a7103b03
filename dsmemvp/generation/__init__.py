"""Texts from a trained model: decoding through transformers' `generate`, and the answers that users ask for."""
