"""Data sets registered by path, dataset mappers, copy-paste."""
