"""Scores: segment tables, matching, protocols, metrics."""
