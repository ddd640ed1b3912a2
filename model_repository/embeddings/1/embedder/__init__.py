"""Texts to vectors. Nothing here imports Triton."""
