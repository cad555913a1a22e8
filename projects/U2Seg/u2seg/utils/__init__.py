"""What every package shares: image reading, files, manifests, registries, k-means."""
