"""Images that were readable when masks were made and are not in a later stage."""

import logging
from pathlib import Path

from u2seg.data.formats.mask_shards import ListedImage, iter_readable_images
from u2seg.utils.image_io import ImageReadError, ImageSource, read_listed_image
from u2seg.utils.kmeans import CENTROIDS
from u2seg.utils.manifest import FAILURES, Failure, TooManyFailuresError, report_failures

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
    failures = [Failure(name, _reason(images, name)) for name in names]
    try:
        report_failures(output, failures, total, max_share)
    except TooManyFailuresError:
        for path in (*output.glob("shard-*"), output / CENTROIDS):
            path.unlink(missing_ok=True)
        raise
    logger.warning("%d images were lost since their masks were made: they get no labels, see %s", len(names), output)


def count_put_back(images: ImageSource, masks: Path, names: set[str]) -> int:
    """Returns how many lost images can be read again, in the size for which their masks were made.

    Args:
        images: the images.
        masks: directory of the mask stage, which knows the sizes.
        names: of the lost ones.
    """
    lost = (image for image in iter_readable_images(masks) if image.file_name in names) if names else ()
    return sum(is_still_readable(images, image) for image in lost)


def is_still_readable(images: ImageSource, image: ListedImage) -> bool:
    """Returns whether an image can be read, in the size for which its masks were made."""
    try:
        read_listed_image(images, image.file_name, (image.height, image.width))
    except ImageReadError:
        return False
    return True


def _reason(images: ImageSource, name: str) -> str:
    try:
        read_listed_image(images, name)
    except ImageReadError as error:
        return str(error)
    return f"{name} could not be read, or had another size, when the stage ran"
