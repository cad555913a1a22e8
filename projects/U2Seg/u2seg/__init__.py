"""U2Seg for Detectron2: unsupervised instance, semantic and panoptic segmentation; LUSS/PASS beside it.

``import u2seg`` registers the project's configuration keys, datasets, mappers, models, evaluators and hooks. It opens no file.
"""

try:
    import detectron2  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "detectron2":
        raise  # Detectron2 is there and lacks something itself
    raise ModuleNotFoundError(
        """u2seg needs Detectron2, which is not installed in this Python. Its Python files come from PyPI, without a
compiler, for Python 3.10 to 3.13 (one line each):

    pip install fvcore iopath yacs omegaconf hydra-core cloudpickle tabulate tensorboard termcolor matplotlib packaging pycocotools

    pip install --no-deps --only-binary=:all: --implementation cp --python-version 3.10 --upgrade --target \
"$(python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')" sal-detectron2==0.7.2

A Detectron2 that you built yourself does as well.""",
        name="detectron2",
    ) from None

from u2seg.config import add_u2seg_config, get_config_file, setup_cfg
from u2seg.engine import U2SegTrainer
from u2seg.evaluation import score_panoptic_files, score_saved_tables
from u2seg.modeling import complete_config
from u2seg.predictor import Prediction, Predictor
from u2seg.pseudo_labels import make_pseudo_labels
from u2seg.utils.image_io import read_image_rgb
from u2seg.version import __version__

from u2seg import luss as _luss  # noqa: F401 isort:skip - registers LUSS and PASS

__all__ = [
    "Prediction",
    "Predictor",
    "U2SegTrainer",
    "__version__",
    "add_u2seg_config",
    "complete_config",
    "get_config_file",
    "make_pseudo_labels",
    "read_image_rgb",
    "score_panoptic_files",
    "score_saved_tables",
    "setup_cfg",
]
