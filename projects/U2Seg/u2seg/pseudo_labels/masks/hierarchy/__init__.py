"""Masks from a hierarchy of regions: superpixels, several ways to merge them, and a ranking of what comes out.

It needs the pixels of an image and nothing else: no weights, no training. Learned patch features may take part.
"""
