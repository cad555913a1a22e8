"""Converts published weights to this project's names, trained models to what is handed to others, and labels for other tools.

    u2seg convert labels output/labels --images photos --format cvat --output for-cvat
    u2seg convert corrected annotations.xml --images photos --format cvat --output datasets/corrected
    u2seg convert masks output/labels masks.json
    u2seg convert dino-resnet dino_resnet50_pretrain.pth datasets/dino/dino_resnet50_pretrain_d2.pkl
    u2seg convert pass pass50_pretrained.pth.tar pass_R18_s50.pth
    u2seg convert stego cocostuff27_vit_base_5.ckpt stego.pth
    u2seg convert cause segment_tr.pth cause.pth --clusters cluster_tr.pth --codebook modular.npy
    u2seg convert safetensors output/photos/backbone output/photos/model --output output/release

``labels`` writes what ``u2seg labels`` or ``u2seg predict`` made for COCO tools, YOLO, Pascal VOC, FiftyOne, Label Studio or CVAT.
``corrected`` makes a dataset of what people corrected in Label Studio, CVAT or a COCO tool. ``masks`` takes a label directory after its
mask stage and writes a COCO instances JSON of one category, with a score for each mask. ``dino-resnet`` takes the DINO authors'
ResNet-50 (an address is downloaded to Detectron2's cache) or any torchvision ResNet, and writes what Detectron2 loads as MODEL.WEIGHTS.
``pass`` takes a file of https://github.com/LUSSeg/PASS and writes MODEL.WEIGHTS for configs/LUSS, or FEATURES.RESNET.WEIGHTS; centroids
(.npy) need no conversion. ``stego`` and ``cause`` write SEMANTICS.LEARNED.WEIGHTS from the authors' files, and print the settings that
fit them. ``safetensors`` takes the directories of trainings (OUTPUT_DIR) and writes for each a directory of its name:
model.safetensors in half precision, config.yaml and README.md, the model card. Of pretraining, the backbone alone is written.
"""

import argparse
from pathlib import Path

from u2seg.checkpoint import convert_torchvision_resnet
from u2seg.data.formats.class_agnostic import write_class_agnostic
from u2seg.engine.release import write_release
from u2seg.export.label_conversion import FIFTYONE, READERS, WRITERS, convert_labels, import_corrected
from u2seg.luss import convert_pass
from u2seg.pseudo_labels.semantics.learned.published_heads import convert_cause, convert_stego
from u2seg.visualization.label_page import load_panoptic_labels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    commands = parser.add_subparsers(
        dest="kind", required=True, metavar="labels|corrected|masks|dino-resnet|pass|stego|cause|safetensors"
    )
    labels = commands.add_parser("labels", help="labels or predictions for another tool")
    labels.add_argument("source", help="directory of labels or predictions, or a COCO panoptic JSON")
    labels.add_argument("--images", required=True, metavar="DIR", help="directory of the images")
    labels.add_argument("--format", required=True, choices=[*WRITERS, FIFTYONE], help="of the files to write")
    labels.add_argument(
        "--output", required=True, metavar="DIR", help="directory to write; FiftyOne: the dataset's name"
    )
    labels.add_argument("--stuff", action="store_true", help="write stuff regions too, not things alone")
    corrected = commands.add_parser("corrected", help="a dataset of labels that were corrected in a tool")
    corrected.add_argument("source", help="the tool's export")
    corrected.add_argument("--images", required=True, metavar="DIR", help="directory of the images")
    corrected.add_argument("--format", required=True, choices=READERS, help="of the export")
    corrected.add_argument("--output", required=True, metavar="DIR", help="root of the dataset to write")
    corrected.add_argument("--categories", metavar="JSON", help="categories.json that was written with the labels")
    corrected.add_argument("--stuff", nargs="*", default=[], metavar="NAME", help="categories that are stuff")
    for kind, summary, source, output in (
        ("masks", "masks as a COCO instances JSON", "label directory or mask directory", ".json file to write"),
        ("dino-resnet", "a torchvision ResNet for Detectron2", "published weights", ".pkl file to write"),
        ("pass", "a published PASS checkpoint", "published weights", ".pth file to write"),
        ("stego", "a published STEGO checkpoint", "published weights", ".pth file to write"),
        (
            "cause",
            "published files of CAUSE; its head has seen labels",
            "segment_tr.pth or segment_mlp.pth",
            ".pth file to write",
        ),
    ):
        command = commands.add_parser(kind, help=summary)
        command.add_argument("source", help=source)
        command.add_argument("output", help=output)
        if kind == "cause":
            command.add_argument("--clusters", required=True, metavar="PTH", help="cluster_tr.pth or cluster_mlp.pth")
            command.add_argument("--codebook", default="", metavar="NPY", help="modular.npy (default: in --clusters)")
    trained = commands.add_parser("safetensors", help="trained models with their settings and a model card")
    trained.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="OUTPUT_DIR of a training")
    trained.add_argument("--output", required=True, type=Path, metavar="DIR", help="directory for the results")
    trained.add_argument(
        "--license", default="other", metavar="ID", help="license of the weights, as the Hugging Face Hub spells it"
    )


def run(args: argparse.Namespace) -> int:
    """Converts and says how much was written."""
    convert = {
        "labels": _labels,
        "corrected": _corrected,
        "masks": _masks,
        "dino-resnet": _dino_resnet,
        "pass": _pass,
        "stego": _learned_head,
        "cause": _learned_head,
        "safetensors": _write_releases,
    }[args.kind]
    convert(args)
    return 0


def _labels(args: argparse.Namespace) -> None:
    labels = load_panoptic_labels(args.source, args.images)
    count = convert_labels(labels, args.output, args.format, with_stuff=args.stuff)
    place = f"FiftyOne dataset {Path(args.output).name}" if args.format == FIFTYONE else args.output
    print(f"{count} regions of {len(labels.annotations)} images in {place}")


def _corrected(args: argparse.Namespace) -> None:
    made = import_corrected(
        args.source, args.images, args.output, args.format, categories=args.categories, stuff=args.stuff
    )
    print(f"{made.regions} regions of {made.images} images in {made.root}")
    if made.new_categories:
        print(f"new categories: {', '.join(made.new_categories)}")
    print(
        "to train on them, put into the configuration:\n"
        "DATASETS:\n"
        '  TRAIN: ("corrected",)\n'
        "  BY_PATH:\n"
        f"    corrected: {{FORMAT: coco_panoptic, ROOT: {made.root}, SPLIT: {made.split}}}"
    )


def _masks(args: argparse.Namespace) -> None:
    num_images, num_masks = write_class_agnostic(args.source, args.output)
    print(f"{num_masks} masks of {num_images} images in {args.output}")


def _dino_resnet(args: argparse.Namespace) -> None:
    print(f"{convert_torchvision_resnet(args.source, args.output)} tensors in {args.output}")


def _pass(args: argparse.Namespace) -> None:
    converted = convert_pass(args.source, args.output)
    print(f"{len(converted.weights)} tensors in {args.output}")
    if converted.left_out:
        print(f"left out, without a counterpart: {', '.join(converted.left_out)}")


def _learned_head(args: argparse.Namespace) -> None:
    """Converts a head of STEGO or CAUSE and prints the settings that fit it."""
    if args.kind == "stego":
        head = convert_stego(args.source, args.output)
    else:
        head = convert_cause(args.source, args.clusters, args.output, args.codebook)
    print(f"{len(head.weights)} tensors in {args.output}; {len(head.left_out)} left out")
    print(f"settings: {' '.join(head.settings)} SEMANTICS.LEARNED.WEIGHTS {args.output}")


def _write_releases(args: argparse.Namespace) -> None:
    names = [run.resolve().name for run in args.runs]
    if len(set(names)) != len(names):
        raise ValueError(f"trainings must have different names, since each gets a directory; got {', '.join(names)}")
    for run, name in zip(args.runs, names):
        written = write_release(run, args.output / name, license_id=args.license)
        print(f"{written.directory}: {written.num_bytes / 1e6:.1f} MB, SHA-256 {written.sha256}")
