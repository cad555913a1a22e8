"""What classes are called and how they are colored in images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from u2seg.structures.label_space import LabelSpace
from u2seg.utils.files import read_json
from u2seg.visualization.colors import Color, cluster_color


@dataclass(frozen=True)
class ClassStyle:
    """Names and colors of classes, by contiguous id: things 0..K-1, stuff 1..S.

    Attributes:
        thing_names: K names (``MetadataCatalog`` ``thing_classes``).
        stuff_names: S + 1 names, entry 0 being "things" (``stuff_classes``).
        thing_colors: K sRGB colors.
        stuff_colors: S + 1 sRGB colors.
    """

    thing_names: Sequence[str]
    stuff_names: Sequence[str]
    thing_colors: Sequence[Color]
    stuff_colors: Sequence[Color]

    @classmethod
    def of_names(cls, thing_names: Sequence[str], stuff_names: Sequence[str]) -> "ClassStyle":
        """Returns the names with the fixed color of each id."""
        return cls(
            thing_names,
            stuff_names,
            [cluster_color("thing", index) for index in range(len(thing_names))],
            [_stuff_color(index) for index in range(len(stuff_names))],
        )

    @classmethod
    def of_label_space(cls, space: LabelSpace) -> "ClassStyle":
        """Returns the names that a label space has and the fixed colors of its ids."""
        return cls.of_names(list(space.thing_names), ["things", *space.stuff_names])


def _stuff_color(contiguous_id: int) -> Color:
    """Returns the fixed color of a class of stuff; cluster 0 has contiguous id 1."""
    return cluster_color("stuff", max(contiguous_id - 1, 0))


def style_from_label_map(path: str | Path, space: LabelSpace) -> ClassStyle:
    """Returns names and colors of the categories that a saved label map assigns to clusters, as a ground truth is drawn.

    A cluster without a category keeps its own name, and has a color that no category has.

    Args:
        path: JSON file that :func:`u2seg.evaluation.matching.label_map.save_label_map` wrote.
        space: the clusters.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no label map, or one for other counts of clusters.
    """
    values = read_json(path)
    wanted = {"thing_clusters", "stuff_clusters", "categories"}
    if not isinstance(values, dict) or not wanted <= values.keys():
        raise ValueError(f"{path} is no label map: expected a JSON object with {', '.join(sorted(wanted))}")
    counts = len(values["thing_clusters"]), len(values["stuff_clusters"])
    if counts != (space.num_things, space.num_stuff):
        raise ValueError(
            f"{path} maps {counts[0]} thing and {counts[1]} stuff clusters, the model has {space.num_things} and "
            f"{space.num_stuff}; use a label map that was fitted for this model"
        )
    categories = ClassStyle.of_names(
        values["categories"]["thing_names"], ["things", *values["categories"]["stuff_names"]]
    )
    # By joint category: things, then stuff.
    names = [*categories.thing_names, *categories.stuff_names[1:]]
    colors = [*categories.thing_colors, *categories.stuff_colors[1:]]

    def restyled(own: Sequence[str], joint: Sequence[int], kind: str) -> tuple[list[str], list[Color]]:
        # Far from the ids that categories have, so that no unmatched cluster looks like a category.
        strangers = [cluster_color(kind, 1000 + cluster) for cluster in range(len(own))]
        return (
            [names[j] if j >= 0 else name for j, name in zip(joint, own)],
            [colors[j] if j >= 0 else stranger for j, stranger in zip(joint, strangers)],
        )

    things, thing_colors = restyled(space.thing_names, values["thing_clusters"], "thing")
    stuff, stuff_colors = restyled(space.stuff_names, values["stuff_clusters"], "stuff")
    return ClassStyle(things, ["things", *stuff], thing_colors, [_stuff_color(0), *stuff_colors])
