"""COCO's supercategories: the 15 groups of stuff that U2Seg scores, and the 12 of things that make COCO-Stuff-27 with them."""

from u2seg.structures.label_space import LabelSpace

# COCO panoptic ids of the stuff categories by supercategory. Source: COCO's panoptic_coco_categories.json.
_STUFF = {
    "textile": (92, 93, 109, 141, 168, 200),
    "building": (95, 128, 151, 166, 197),
    "raw-material": (100, 195),
    "furniture-stuff": (107, 112, 130, 133, 156, 161, 188, 189),
    "floor": (118, 190),
    "plant": (119, 184, 193),
    "food-stuff": (122, 196),
    "ground": (125, 144, 145, 147, 149, 154, 159, 191, 194),
    "structural": (138, 185),
    "water": (148, 155, 178),
    "wall": (171, 175, 176, 177, 199),
    "window": (180, 181),
    "ceiling": (186,),
    "sky": (187,),
    "solid": (192, 198),
}
# First and last id of the things of each supercategory; the ids between them that COCO skips have no category.
_THINGS = {
    "person": (1, 1),
    "vehicle": (2, 9),
    "outdoor": (10, 15),
    "animal": (16, 25),
    "accessory": (26, 33),
    "sports": (34, 43),
    "kitchen": (44, 51),
    "food": (52, 61),
    "furniture": (62, 71),
    "electronic": (72, 77),
    "appliance": (78, 83),
    "indoor": (84, 91),
}
NUM_COCO_THINGS = 80
STUFF_SUPERCATEGORIES = {identifier: name for name, ids in _STUFF.items() for identifier in ids}


def stuff_supercategories(space: LabelSpace) -> dict[int, str] | None:
    """Returns dataset id -> supercategory of COCO's 53 stuff categories; None where ``space`` has not exactly those."""
    if set(space.stuff_dataset_ids) != set(STUFF_SUPERCATEGORIES) or not has_coco_things(space):
        return None
    return STUFF_SUPERCATEGORIES


def has_coco_things(space: LabelSpace) -> bool:
    """Returns whether the things of ``space`` are COCO's 80."""
    ids = space.thing_dataset_ids
    return space.num_things == NUM_COCO_THINGS and min(ids) == 1 and max(ids) == 90 and space.thing_names[0] == "person"


def thing_supercategory(identifier: int) -> str:
    """Returns the supercategory of a COCO thing id, 1..91.

    Raises:
        ValueError: no thing of COCO has that id.
    """
    for name, (first, last) in _THINGS.items():
        if first <= identifier <= last:
            return name
    raise ValueError(f"COCO's thing ids lie in 1..91, got {identifier}")


def semantic_groups(space: LabelSpace) -> tuple[list[int], tuple[str, ...]]:
    """Returns the class of each joint category, and the classes' names: COCO-Stuff-27 for COCO, else every category its own.

    Source: Caesar et al., COCO-Stuff, CVPR 2018, label hierarchy; as STEGO and PiCIE use it.
    """
    if not has_coco_things(space):
        names = space.thing_names + space.stuff_names
        return list(range(len(names))), names
    coarse = stuff_supercategories(space)
    things = [thing_supercategory(identifier) for identifier in space.thing_dataset_ids]
    # Stuff that is grouped already carries the supercategories as names.
    stuff = [coarse[i] for i in space.stuff_dataset_ids] if coarse else list(space.stuff_names)
    names = (*_THINGS, *(_STUFF if coarse else dict.fromkeys(stuff)))
    return [names.index(name) for name in things + stuff], names
