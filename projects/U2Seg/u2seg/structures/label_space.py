"""The only code that converts between cluster ids, contiguous ids, dataset ids and semantic-target ids.

Five numberings meet in this project:

=================  =========================================================================================
cluster id         0-based, one numbering for thing clusters (0..K-1) and one for stuff clusters (0..S-1)
contiguous id      what Detectron2's heads predict: things 0..K-1; semantic classes 0..S, where 0 is "thing"
dataset id        what COCO files hold: things 1..K, stuff K+1..K+S
semantic target    8-bit stuff PNG: 0 "thing", 1..S stuff, 255 ignore
panoptic pixel     segment id in a panoptic PNG, 0 void
=================  =========================================================================================

A *category* is a ground-truth class and never a cluster; ground truth in COCO's formats follows the same scheme with its own ids.
"""

from dataclasses import dataclass
from functools import cached_property

IGNORE_LABEL = 255  # semantic target: no loss, no score
THING_LABEL = 0  # semantic target and semantic prediction: "some thing"
VOID_SEGMENT = 0  # panoptic pixel that belongs to no segment
MAX_STUFF = 254  # what an 8-bit stuff PNG can number besides 0 and 255


@dataclass(frozen=True)
class LabelSpace:
    """Names and ids of a dataset's thing and stuff classes, clusters or ground-truth categories.

    Attributes:
        thing_dataset_ids: dataset id of each thing class, by contiguous id 0..K-1.
        stuff_dataset_ids: dataset id of each stuff class, by contiguous id minus one (contiguous 0 is "thing").
        thing_names, stuff_names: their names, same order.
    """

    thing_dataset_ids: tuple[int, ...]
    stuff_dataset_ids: tuple[int, ...]
    thing_names: tuple[str, ...]
    stuff_names: tuple[str, ...]

    def __post_init__(self) -> None:
        ids = self.thing_dataset_ids + self.stuff_dataset_ids
        if len(set(ids)) != len(ids):
            raise ValueError(f"dataset ids must be unique, got {sorted(ids)}")
        if len(self.stuff_dataset_ids) > MAX_STUFF:
            raise ValueError(
                f"an 8-bit stuff PNG numbers at most {MAX_STUFF} classes, got {len(self.stuff_dataset_ids)}"
            )

    @classmethod
    def of_clusters(cls, num_thing_clusters: int, num_stuff_clusters: int) -> "LabelSpace":
        """Returns the label space of pseudo-labels: clusters named by their dataset id, as U2Seg's files have them.

        Example:
            >>> space = LabelSpace.of_clusters(num_thing_clusters=3, num_stuff_clusters=2)
            >>> space.thing_dataset_ids, space.stuff_dataset_ids
            ((1, 2, 3), (4, 5))
        """
        if num_thing_clusters < 1 or num_stuff_clusters < 1:
            raise ValueError(
                f"need at least one cluster of each kind, got {num_thing_clusters} and {num_stuff_clusters}"
            )
        things = tuple(range(1, num_thing_clusters + 1))
        stuff = tuple(range(num_thing_clusters + 1, num_thing_clusters + num_stuff_clusters + 1))
        return cls(things, stuff, tuple(map(str, things)), tuple(map(str, stuff)))

    @classmethod
    def of_coco_categories(cls, categories: list[dict]) -> "LabelSpace":
        """Returns the label space of COCO panoptic ``categories`` (dicts with ``id``, ``name``, ``isthing``), by ascending id."""
        ordered = sorted(categories, key=lambda category: category["id"])
        things = [category for category in ordered if category["isthing"]]
        stuff = [category for category in ordered if not category["isthing"]]
        return cls(
            tuple(category["id"] for category in things),
            tuple(category["id"] for category in stuff),
            tuple(category["name"] for category in things),
            tuple(category["name"] for category in stuff),
        )

    @property
    def num_things(self) -> int:
        """K, the number of thing classes: what the box and mask heads predict."""
        return len(self.thing_dataset_ids)

    @property
    def num_stuff(self) -> int:
        """S, the number of stuff classes, "thing" not counted."""
        return len(self.stuff_dataset_ids)

    @cached_property
    def thing_contiguous_ids(self) -> dict[int, int]:
        """Dataset id -> contiguous id 0..K-1, for things."""
        return {dataset_id: index for index, dataset_id in enumerate(self.thing_dataset_ids)}

    @cached_property
    def stuff_contiguous_ids(self) -> dict[int, int]:
        """Dataset id -> contiguous id 1..S (equal to the semantic target), for stuff."""
        return {dataset_id: index + 1 for index, dataset_id in enumerate(self.stuff_dataset_ids)}

    def thing_dataset_id(self, cluster: int) -> int:
        """Returns the dataset id of a 0-based thing cluster."""
        return self.thing_dataset_ids[_checked(cluster, self.num_things, "thing cluster")]

    def stuff_dataset_id(self, cluster: int) -> int:
        """Returns the dataset id of a 0-based stuff cluster."""
        return self.stuff_dataset_ids[_checked(cluster, self.num_stuff, "stuff cluster")]

    def stuff_target(self, cluster: int) -> int:
        """Returns the semantic target (1..S) of a 0-based stuff cluster."""
        return _checked(cluster, self.num_stuff, "stuff cluster") + 1

    def semantic_target_of(self, dataset_id: int) -> int:
        """Returns the semantic target of a panoptic segment's dataset id: 0 for every thing, 1..S for stuff."""
        if dataset_id in self.thing_contiguous_ids:
            return THING_LABEL
        return self.stuff_contiguous_ids[dataset_id]

    def categories(self) -> list[dict]:
        """Returns COCO panoptic ``categories``: things first, then stuff."""
        return [
            *({"id": i, "name": n, "isthing": 1} for i, n in zip(self.thing_dataset_ids, self.thing_names)),
            *({"id": i, "name": n, "isthing": 0} for i, n in zip(self.stuff_dataset_ids, self.stuff_names)),
        ]

    def metadata(self) -> dict:
        """Returns the Detectron2 metadata of a dataset "panoptic, separated": names, and dataset id -> contiguous id."""
        return {
            "thing_classes": list(self.thing_names),
            "stuff_classes": ["things", *self.stuff_names],
            "thing_dataset_id_to_contiguous_id": dict(self.thing_contiguous_ids),
            # 0 stands for "things", as in Detectron2's own register_coco_panoptic_separated.
            "stuff_dataset_id_to_contiguous_id": {0: THING_LABEL, **self.stuff_contiguous_ids},
            "ignore_label": IGNORE_LABEL,
        }


def _checked(cluster: int, count: int, what: str) -> int:
    if not 0 <= cluster < count:
        raise ValueError(f"{what} must be in 0..{count - 1}, got {cluster}")
    return int(cluster)
