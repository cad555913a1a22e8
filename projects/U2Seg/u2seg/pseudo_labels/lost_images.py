"""Images that were readable when masks were made and are not in a later stage."""

import logging
from pathlib import Path

from u2seg.data.formats.mask_shards import iter_readable_images
from u2seg.utils.image_io import ImageReadError, ImageSource, read_listed_image
from u2seg.utils.manifest import FAILURES, Failure, report_failures

logger = logging.getLogger(__name__)


def report_lost_images(images: ImageSource, names: list[str], output: Path, total: int, max_share: float) -> None:
    """Records, in a stage's ``failures.json``, the images that it could not read although the mask stage could.

    Args:
        images: the images.
        names: of the lost ones.
        output: the stage's directory.
        total: images of the mask stage.
        max_share: share, 0..1, of images that may be lost.

    Raises:
        TooManyFailuresError: more were lost; the stage is to be made again, since its centroids were found without them.
    """
    if not names:
        (output / FAILURES).unlink(missing_ok=True)  # of an attempt before the images were put back
        return
    unknown = "it could not be read, or had another size, when the stage ran"
    failures = [Failure(name, unreadable_reason(images, name) or unknown) for name in names]
    report_failures(output, failures, total, max_share, ", or put them back and run again")
    logger.warning("%d images were lost since their masks were made: they get no labels, see %s", len(names), output)


def count_put_back(images: ImageSource, masks: Path, names: set[str]) -> int:
    """Returns how many lost images can be read again, in the size for which their masks were made.

    Args:
        images: the images.
        masks: directory of the mask stage, which knows the sizes.
        names: of the lost ones.
    """
    lost = (image for image in iter_readable_images(masks) if image.file_name in names) if names else ()
    return sum(unreadable_reason(images, name, (height, width)) is None for name, height, width in lost)


def unreadable_reason(images: ImageSource, name: str, size: tuple[int, int] | None = None) -> str | None:
    """Returns why an image cannot be read; None if it can.

    Args:
        images: the images.
        name: of the image.
        size: the (height, width) that it had when masks were made; None: any.
    """
    try:
        read_listed_image(images, name, size)
    except ImageReadError as error:
        return str(error)
    return None
