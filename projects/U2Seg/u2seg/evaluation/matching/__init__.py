"""Clusters matched to categories: assignments, label maps, protocols."""
