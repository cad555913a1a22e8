"""What happens beside PASS's training, registered as hooks by importing this package."""

from u2seg.luss.engine.knn_accuracy import KnnMonitor, build_knn_hook

__all__ = ["KnnMonitor", "build_knn_hook"]
