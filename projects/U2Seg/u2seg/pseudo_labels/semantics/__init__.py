"""Semantic clusters: an unsupervised id for every pixel."""
