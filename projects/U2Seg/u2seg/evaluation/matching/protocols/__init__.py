"""Protocols by family, registered by importing this package.

A protocol is a named bundle of rules that say which category each cluster stands for and what an unmatched cluster costs.
"""

from u2seg.evaluation.matching.protocols.base import Protocol, build_protocol
from u2seg.evaluation.matching.protocols.cups import CupsProtocol, CupsReleaseProtocol
from u2seg.evaluation.matching.protocols.plain import HungarianProtocol, IdentityProtocol, MajorityProtocol
from u2seg.evaluation.matching.protocols.stego import StegoProtocol
from u2seg.evaluation.matching.protocols.u2seg import (
    U2SegFaultyReleaseProtocol,
    U2SegPaperProtocol,
    U2SegReleaseProtocol,
)

__all__ = [
    "CupsProtocol",
    "CupsReleaseProtocol",
    "HungarianProtocol",
    "IdentityProtocol",
    "MajorityProtocol",
    "Protocol",
    "StegoProtocol",
    "U2SegFaultyReleaseProtocol",
    "U2SegPaperProtocol",
    "U2SegReleaseProtocol",
    "build_protocol",
]
