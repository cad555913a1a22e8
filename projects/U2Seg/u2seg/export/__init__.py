"""What leaves for other tools: traced models, label files of annotation tools."""

from u2seg.export.exported_model import ExportedModel
from u2seg.export.tracing import ExportError, export_model

__all__ = ["ExportError", "ExportedModel", "export_model"]
