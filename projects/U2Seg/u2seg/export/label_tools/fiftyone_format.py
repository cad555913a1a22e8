"""FiftyOne: a dataset in its database, with a field of instances."""

from collections.abc import Iterable, Sequence
from typing import Any

from u2seg.export.label_tools.labeled_images import Category, LabeledImage, Region, checked_names
from u2seg.structures.mask_boxes import mask_box

FIELD = "u2seg"


def make_fiftyone_dataset(images: Iterable[LabeledImage], categories: Sequence[Category], name: str) -> Any:
    """Returns a persistent FiftyOne dataset whose samples have their regions in the field ``u2seg``.

    Args:
        images: the images; FiftyOne refers to them where they lie.
        categories: all that occur.
        name: of the dataset; none may have it yet.

    Raises:
        ModuleNotFoundError: FiftyOne is not installed.
        ValueError: there is a dataset of that name.
    """
    try:
        import fiftyone
    except ModuleNotFoundError as error:
        if error.name != "fiftyone":
            raise
        raise ModuleNotFoundError(
            "this needs FiftyOne, which is not installed: pip install 'u2seg[fiftyone]', in an environment of its own, since it "
            "asks for another OpenCV",
            name="fiftyone",
        ) from None

    if fiftyone.dataset_exists(name):
        raise ValueError(
            f"FiftyOne has a dataset {name!r} already; choose another name, or delete it with fiftyone.delete_dataset({name!r})"
        )
    names = checked_names(categories)
    samples = []
    for image in images:
        sample = fiftyone.Sample(filepath=str(image.path.absolute()))
        sample[FIELD] = fiftyone.Detections(detections=[fiftyone.Detection(**_fields(one)) for one in image.regions])
        samples.append(sample)
    # Made last, so that labels that cannot be read leave no empty dataset behind.
    dataset = fiftyone.Dataset(name, persistent=True)
    dataset.default_classes = names
    dataset.add_samples(samples)
    return dataset


def _fields(region: Region) -> dict[str, Any]:
    """Returns the fields of a detection: its box relative to the image's size, its mask inside the box."""
    left, top, right, bottom = mask_box(region.mask)
    height, width = region.mask.shape
    box = [left / width, top / height, (right - left) / width, (bottom - top) / height]
    found = {"label": region.category, "bounding_box": box, "mask": region.mask[top:bottom, left:right]}
    return found if region.score is None else {**found, "confidence": region.score}
