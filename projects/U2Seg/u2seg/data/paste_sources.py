"""Which image copy-paste draws on for a given one: ``INPUT.COPY_PASTE.PARTNER``."""

from array import array
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence

import numpy as np
from detectron2.config import CfgNode

from u2seg.utils.registry import NamedRegistry, get_registered

# What a random number is for; u2seg.data.build has the numbers before these,
# u2seg.engine.training_step the next.
_AUGMENTATION, _PARTNER = 2, 3

# From (dataset, position, index, partner's position, partner's index) to the dataset dict to paste
# from.
PasteSources = Callable[[Sequence[dict], int, int, int, int], dict]

PASTE_SOURCES_REGISTRY = NamedRegistry("PASTE_SOURCES")
PASTE_SOURCES_REGISTRY.__doc__ = """
Rules that find the image to paste from, chosen by ``INPUT.COPY_PASTE.PARTNER``; an entry is called
as ``(dicts, same_cluster, seed)`` and returns :data:`PasteSources`.
"""


def augmentation_seed(seed: int, position: int) -> tuple[int, ...]:
    """Returns the seed of the augmentation of the sample at a position of the stream."""
    return seed, _AUGMENTATION, position


def build_paste_sources(cfg: CfgNode, dicts: Collection[dict], seed: int) -> PasteSources:
    """Returns the rule that ``INPUT.COPY_PASTE.PARTNER`` names.

    Args:
        cfg: the configuration.
        dicts: the dataset in Detectron2's standard form.
        seed: of the stream.

    Raises:
        UnknownNameError: no rule of that name; the message lists those that are registered.
    """
    keys = cfg.INPUT.COPY_PASTE
    rule = get_registered(PASTE_SOURCES_REGISTRY, keys.PARTNER, "INPUT.COPY_PASTE.PARTNER")
    return rule(dicts, keys.SAME_CLUSTER, seed)


@PASTE_SOURCES_REGISTRY.register("reversed_batch")
class ReversedBatch:
    """The image at the mirrored place of the batch, augmented just as where it is a target itself.

    It may hold no instance, or none of the target's clusters; then nothing is pasted. With many
    clusters and ``SAME_CLUSTER`` that is the rule: use ``any_image`` there. Source: CutLER's code.
    """

    def __init__(self, dicts: Collection[dict], same_cluster: bool, seed: int):
        """Keeps the seed; the stream has chosen already."""
        self._seed = seed

    def __call__(
        self, dicts: Sequence[dict], position: int, index: int, partner_position: int, partner_index: int
    ) -> dict:
        """Returns the partner's dict with the seed of its augmentation."""
        return {**dicts[partner_index], "augmentation_seed": augmentation_seed(self._seed, partner_position)}


@PASTE_SOURCES_REGISTRY.register("any_image")
class AnyImage:
    """Another image of the dataset that holds instances, drawn uniformly; ours.

    With ``SAME_CLUSTER`` it is one that holds the class of an instance of the target, drawn as well.
    """

    def __init__(self, dicts: Collection[dict], same_cluster: bool, seed: int):
        """Indexes the images that hold instances, by class where ``same_cluster`` asks for it."""
        self._seed = seed
        self._with_instances = np.array([i for i, record in enumerate(dicts) if record.get("annotations")], np.int32)
        self._by_class = None
        if same_cluster:
            holders: dict[int, array] = defaultdict(lambda: array("i"))
            for index, record in enumerate(dicts):
                for category in {annotation["category_id"] for annotation in record.get("annotations", ())}:
                    holders[category].append(index)
            self._by_class = {key: np.frombuffer(indices, np.int32) for key, indices in holders.items()}

    def __call__(
        self, dicts: Sequence[dict], position: int, index: int, partner_position: int, partner_index: int
    ) -> dict:
        """Returns the dict of the image that the position's random numbers choose."""
        return dicts[self.choose(dicts[index], index, np.random.default_rng((self._seed, _PARTNER, position)))]

    def choose(self, record: dict, index: int, rng: np.random.Generator) -> int:
        """Returns the index of an image to paste from: another one if there is one, with instances."""
        candidates = self._with_instances
        if self._by_class is not None and record.get("annotations"):
            annotation = record["annotations"][rng.integers(len(record["annotations"]))]
            candidates = self._by_class[annotation["category_id"]]
        if not len(candidates):
            return index
        choice = int(candidates[rng.integers(len(candidates))])
        if choice == index and len(candidates) > 1:
            # The next one instead: no loop, and nearly as even.
            choice = int(candidates[(np.searchsorted(candidates, index) + 1) % len(candidates)])
        return choice
