"""What a protocol is: a named bundle of rules that say which category each cluster stands for, and what the scores cost."""

from abc import ABC, abstractmethod

from u2seg.evaluation.matching.label_map import LabelMap
from u2seg.evaluation.metrics.panoptic_quality import PanopticMatches, match_segments
from u2seg.evaluation.registries import PROTOCOL_REGISTRY
from u2seg.evaluation.tables.segment_tables import SegmentTables
from u2seg.utils.registry import get_registered


class Protocol(ABC):
    """The rules of one row of the score table.

    Attributes:
        merge_stuff: whether the stuff segments of one category in one image are one segment.
        scores_segments: whether panoptic and instance scores are defined; False for protocols of semantic segmentation alone.
    """

    merge_stuff = True
    scores_segments = True

    @abstractmethod
    def fit(self, tables: SegmentTables) -> LabelMap:
        """Returns the label map that fits the tables, which may be those of another split than the scored one."""

    def match_segments(self, tables: SegmentTables, label_map: LabelMap) -> PanopticMatches:
        """Returns what PQ counts: COCO's rules, with ``merge_stuff``."""
        return match_segments(tables, label_map.panoptic, label_map.error_category, merge_stuff=self.merge_stuff)


def build_protocol(name: str) -> Protocol:
    """Returns the protocol of that name.

    Raises:
        UnknownNameError: unknown; the message lists those that are registered.
    """
    return get_registered(PROTOCOL_REGISTRY, name, "protocol (TEST.PROTOCOLS)")()
