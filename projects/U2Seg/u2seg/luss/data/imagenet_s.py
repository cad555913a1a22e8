"""ImageNet-S as Detectron2 datasets, straight from an ImageNet directory, the published list files and masks: nothing is copied.

``DATASETS.BY_PATH``::

    imagenet_s50_val: {FORMAT: imagenet_s, CLASSES: 50, SPLIT: val, IMAGES: datasets/imagenet, LISTS: datasets/ImageNet-S/data,
                       MASKS: datasets/ImageNetS50}
    imagenet_s50_pseudo: {FORMAT: luss_pseudo_labels, ROOT: output/luss50/labels, IMAGES: datasets/imagenet/train}

``IMAGES`` holds ``train/<synset>/*.JPEG`` and ``val/`` (flat as published, or sorted into synsets); ``LISTS`` is the directory ``data`` of
the LUSSeg/ImageNet-S repository; ``MASKS`` holds ``validation-segmentation/`` and ``train-semi-segmentation/``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from u2seg.data.datasets.registration import DATASET_FORMAT_REGISTRY, DatasetFiles, DatasetFormat, resolved
from u2seg.luss.data.id_maps import LUSS_IGNORE
from u2seg.luss.data.label_store import INDEX, LabelStore
from u2seg.utils.files import confined_name, confined_path
from u2seg.utils.image_io import image_ids

SPLITS = ("train", "train_semi", "val", "test")

# Images of each split, by number of classes. Source: ImageNet-S, README and list files.
COUNTS = {
    50: {"train": 64431, "train_semi": 500, "val": 752, "test": 1682},
    300: {"train": 384862, "train_semi": 3000, "val": 4097, "test": 9088},
    919: {"train": 1183322, "train_semi": 9190, "val": 12419, "test": 27423},
}

# Synsets whose images ImageNet-S 919 counts to another one. Source: ImageNet-S, data preparation.
MERGED_919 = {
    "n04356056": "n04355933",
    "n04493381": "n02808440",
    "n03642806": "n03832673",
    "n04008634": "n03773504",
    "n03887697": "n15075141",
}


@dataclass(frozen=True)
class ImageNetS:
    """Where the parts of ImageNet-S lie, and which part is meant.

    Attributes:
        num_classes: 50, 300 or 919; others for datasets in the same layout.
        split: one of ``SPLITS``.
        images: the ImageNet directory.
        lists: directory of the list files.
        masks: directory of the masks; None for splits without.
    """

    num_classes: int
    split: str
    images: Path
    lists: Path
    masks: Path | None

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"SPLIT of ImageNet-S must be one of {', '.join(SPLITS)}, got {self.split!r}")
        if self.masks is None and self.split in ("train_semi", "val"):
            raise ValueError(
                f"split {self.split} of ImageNet-S needs MASKS, the directory that holds {_MASK_DIRECTORIES[self.split]}/"
            )

    def synsets(self) -> list[str]:
        """Returns the synsets in order of class id: the first has id 1.

        Raises:
            FileNotFoundError: no list file.
            ValueError: it names another number of classes, or one twice.
        """
        path = self.lists / "categories" / f"ImageNetS_categories_im{self.num_classes}.txt"
        synsets = _lines(path)
        if len(set(synsets)) != len(synsets) or len(synsets) != self.num_classes:
            raise ValueError(
                f"{path} must name {self.num_classes} different synsets, one a line, got {len(set(synsets))}"
            )
        return synsets

    def records(self) -> list[dict]:
        """Returns Detectron2's dicts: ``file_name``, ``image_id``, ``sem_seg_file_name`` (where there are masks), ``image_class``.

        ``submission_name`` (val and test only) is the path of the image's prediction in a submission, ``<synset>/<name>.png``.
        ``image_class`` (0-based, train and train_semi only) is the directory's class, for diagnostics and never for training: the directory
        of a validation image is not always a class that it shows.

        Raises:
            FileNotFoundError: files are missing; the message says which, and where they were looked for.
            ValueError: the number of images is not the published one.
        """
        entries = {"train": self._train, "train_semi": self._train_semi}.get(self.split, self._held_out)()
        records = list(entries)
        expected = COUNTS.get(self.num_classes, {}).get(self.split)
        if expected is not None and len(records) != expected:
            raise ValueError(
                f"split {self.split} of ImageNet-S {self.num_classes} has {expected} images, {len(records)} were found in "
                f"{self.images} and {self.lists}: is the ImageNet directory complete, and are the lists those of this subset?"
            )
        for record, number in zip(records, image_ids([record["file_name"] for record in records])):
            record["image_id"] = number
        return records

    def _train(self) -> Iterator[dict]:
        for index, synset in enumerate(self.synsets()):
            directories = [synset, *self._merged_into(synset)]
            for directory in directories:
                path = confined_path(self.images / "train", directory, self.lists)
                if not path.is_dir():
                    raise FileNotFoundError(
                        f"no directory {path}: IMAGES must hold train/<synset>/*.JPEG for every class"
                    )
                for file in sorted(path.glob("*.JPEG")):
                    yield {"file_name": str(file), "image_class": index}

    def _train_semi(self) -> Iterator[dict]:
        classes = {synset: index for index, synset in enumerate(self.synsets())}
        for line in _lines(self.lists / "names" / f"ImageNetSemi_im{self.num_classes}_train.txt"):
            image, mask = line.split()
            directory, name = _last_two(image)
            # The list's directory is the class; a merged class's images lie in the directory of their own synset.
            source = name.split("_")[0]
            file = self._existing("train", [_joined(source, name), _joined(directory, name)])
            mask_file = confined_path(self._mask_directory(), _joined(*_last_two(mask)), self.lists)
            yield {"file_name": str(file), "sem_seg_file_name": str(mask_file), "image_class": classes[directory]}

    def _mask_directory(self) -> Path:
        assert self.masks is not None  # the splits that come here need it, see __post_init__
        return self.masks / _MASK_DIRECTORIES[self.split]

    def _held_out(self) -> Iterator[dict]:
        name = "validation" if self.split == "val" else "test"
        for line in _lines(self.lists / "mapping" / f"ImageNetS_im{self.num_classes}_mapping_{name}.txt"):
            source, target = line.split()
            source_directory, file_name = _last_two(source)
            file = self._existing("val", [_joined(source_directory, file_name), file_name])
            png = confined_name(Path(_joined(*_last_two(target))).with_suffix(".png").as_posix(), self.lists)
            record = {"file_name": str(file), "submission_name": png}
            if self.split == "val":
                record["sem_seg_file_name"] = str(confined_path(self._mask_directory(), png, self.lists))
            yield record

    def _merged_into(self, synset: str) -> list[str]:
        if self.num_classes != 919:
            return []
        return [source for source, target in MERGED_919.items() if target == synset]

    def _existing(self, split: str, names: list[str]) -> Path:
        candidates = [confined_path(self.images / split, name, self.lists) for name in names]
        for path in candidates:
            if path.is_file():
                return path
        raise FileNotFoundError(f"no image {candidates[0].name}: looked for {' and '.join(map(str, candidates))}")


_MASK_DIRECTORIES = {"val": "validation-segmentation", "train_semi": "train-semi-segmentation"}


def imagenet_s_records(description: Mapping) -> list[dict]:
    """Returns the dicts of a dataset that ``DATASETS.BY_PATH`` describes as format ``imagenet_s``."""
    return _imagenet_s(description).records()


def imagenet_s_metadata(description: Mapping) -> dict:
    """Returns the metadata: classes named by synset (names repeat: two cranes), 1000 to ignore, the evaluator "luss"."""
    synsets = _imagenet_s(description).synsets()
    return {**luss_metadata(synsets), "image_classes": synsets}


def pseudo_label_records(description: Mapping) -> list[dict]:
    """Returns the dicts of format ``luss_pseudo_labels``: ``file_name``, ``image_id``, ``luss_labels`` (directory, number)."""
    store = LabelStore(description["ROOT"])
    images = Path(description["IMAGES"])
    ids = image_ids(store.file_names)
    return [
        {
            "file_name": str(confined_path(images, store.file_names[number], store.root / INDEX)),
            "image_id": ids[number],
            "luss_labels": (str(store.root), number),
        }
        for number in store.numbers()
    ]


def pseudo_label_metadata(description: Mapping) -> dict:
    """Returns the metadata of format ``luss_pseudo_labels``: clusters as classes."""
    return luss_metadata([str(cluster + 1) for cluster in range(LabelStore(description["ROOT"]).num_clusters)])


def luss_metadata(names: list[str]) -> dict:
    """Returns Detectron2's metadata for semantic maps in which 0 is "other" and the named classes follow."""
    return {"stuff_classes": ["other", *names], "ignore_label": LUSS_IGNORE, "evaluator_type": "luss"}


def _imagenet_s(description: Mapping) -> ImageNetS:
    masks = description.get("MASKS")
    return ImageNetS(
        int(description["CLASSES"]),
        description["SPLIT"],
        Path(description["IMAGES"]),
        Path(description["LISTS"]),
        Path(masks) if masks else None,
    )


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(
            f"no list file {path}: LISTS must be the directory data/ of https://github.com/LUSSeg/ImageNet-S, which is not shipped here"
        )
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _last_two(path: str) -> tuple[str, str]:
    parts = Path(path).parts
    return (parts[-2] if len(parts) > 1 else ""), parts[-1]


def _joined(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory else name


def _files(description: Mapping) -> DatasetFiles:
    return DatasetFiles(images=Path(resolved(description)["IMAGES"]))


DATASET_FORMAT_REGISTRY.register("imagenet_s")(
    DatasetFormat(
        ("CLASSES", "SPLIT", "IMAGES", "LISTS"),
        ("MASKS", "SUBSET"),
        _files,
        lambda description, files: imagenet_s_records(resolved(description)),
        imagenet_s_metadata,
    )
)
DATASET_FORMAT_REGISTRY.register("luss_pseudo_labels")(
    DatasetFormat(
        ("ROOT", "IMAGES"),
        ("SUBSET",),
        _files,
        lambda description, files: pseudo_label_records(resolved(description)),
        pseudo_label_metadata,
    )
)
