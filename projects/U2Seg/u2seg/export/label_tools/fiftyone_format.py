"""FiftyOne: a dataset in its database, with a field of instances."""

from collections.abc import Iterable, Sequence
from typing import Any

from u2seg.export.label_tools.labeled_images import Category, LabeledImage, Region, box_xyxy, checked_names

FIELD = "u2seg"


def make_fiftyone_dataset(images: Iterable[LabeledImage], categories: Sequence[Category], name: str) -> Any:
    """Returns a persistent FiftyOne dataset whose samples have their regions in the field ``u2seg``.

    Args:
        images: the images; FiftyOne refers to them where they lie.
        categories: all that occur.
        name: of the dataset; one of that name is replaced.

    Raises:
        ModuleNotFoundError: FiftyOne is not installed.
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

    dataset = fiftyone.Dataset(name, persistent=True, overwrite=True)
    dataset.default_classes = checked_names(categories)
    samples = []
    for image in images:
        sample = fiftyone.Sample(filepath=str(image.path.absolute()))
        sample[FIELD] = fiftyone.Detections(detections=[fiftyone.Detection(**_fields(one)) for one in image.regions])
        samples.append(sample)
    dataset.add_samples(samples)
    return dataset


def _fields(region: Region) -> dict[str, Any]:
    """Returns the fields of a detection: its box relative to the image's size, its mask inside the box."""
    left, top, right, bottom = box_xyxy(region.mask)
    height, width = region.mask.shape
    box = [left / width, top / height, (right - left) / width, (bottom - top) / height]
    found = {"label": region.category, "bounding_box": box, "mask": region.mask[top:bottom, left:right]}
    return found if region.score is None else {**found, "confidence": region.score}
