"""Clusters as categories: one vector a mask, k-means, saved centroids."""
