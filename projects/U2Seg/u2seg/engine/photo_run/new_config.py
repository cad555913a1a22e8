"""A short configuration file to start from, with comments."""

import json
from pathlib import Path

from u2seg.engine.photo_run.run_photos import default_output
from u2seg.utils.image_io import list_images

_NEW_CONFIG = """\
# Settings for the {count} photos in {images}. Everything not written here is as in quick_schedules/photos.yaml.
#   u2seg run {images} --config-file THIS_FILE --output {output}     labels, model, page; fits what you leave out to the photos
#   u2seg train --config-file THIS_FILE     trains on the labels once more
_BASE_: quick_schedules/photos.yaml

# What labels are made from. With DINO's weights, one line is enough; `u2seg run` does the rest:
# FEATURES:
#   VIT: {{WEIGHTS: dino_deitsmall8_pretrain.pth}}

# Uncomment to decide yourself; `u2seg run` takes the square root of the number of masks.
# CLUSTERS:
#   NUM_CLUSTERS: 20
# SEMANTICS:
#   NUM_CLUSTERS: 12

# Uncomment to set the length of the training; `u2seg run` fills the time that --minutes gives it.
# SOLVER:
#   MAX_ITER: 1000

DATASETS:
  TRAIN: ["photos"]
  BY_PATH:
    photos: {{FORMAT: pseudo_labels, ROOT: {labels}, IMAGES: {images}}}
OUTPUT_DIR: {model}
"""


def new_config(images: str | Path, output: str | Path | None = None) -> str:
    """Returns a short configuration file for a directory of photos, with comments.

    Args:
        images: directory of photos.
        output: where runs with it go; None: ``output/`` and the directory's name.

    Raises:
        FileNotFoundError: no such directory, or no image in it.
    """
    count = len(list_images(images))
    output = Path(output) if output else default_output(images)
    quoted = {key: json.dumps(str(path)) for key, path in (("IMAGES", images), ("LABELS", output / "labels"))}
    return _NEW_CONFIG.format(
        count=count,
        images=quoted["IMAGES"],
        labels=quoted["LABELS"],
        model=json.dumps(str(output / "model")),
        output=output,
    )
