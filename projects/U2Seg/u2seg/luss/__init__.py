"""LUSS's stages beyond training: image-level clusters, pixel pseudo-labels, the bank for distance matching, the whole recipe."""
