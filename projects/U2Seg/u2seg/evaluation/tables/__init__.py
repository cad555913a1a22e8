"""Segment tables: what is left of each image when its pixels are gone."""

from u2seg.evaluation.tables.panoptic_files import tables_from_panoptic_files
from u2seg.evaluation.tables.segment_tables import SegmentTables, TableSpace, load_tables, save_tables

__all__ = ["SegmentTables", "TableSpace", "load_tables", "save_tables", "tables_from_panoptic_files"]
