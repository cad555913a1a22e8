"""Puts a trained model on the Hugging Face Hub, with a model card made from its run.

    u2seg push output/my/model --to org/name
    u2seg push output/my/model --to org/name --output for-the-hub --no-upload

Written and uploaded are model.safetensors, config.yaml, the label map of a scored run, and README.md, the model card. The model can then
be used by name: u2seg predict photos --config-file hf://org/name/config.yaml --output predictions. Uploading needs `hf auth login`.
"""

import argparse
import tempfile
from pathlib import Path

from u2seg.export.hub_upload import upload, write_hub_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument("run", type=Path, help="directory of a training, or of `u2seg run`")
    parser.add_argument(
        "--to", required=True, metavar="ORG/NAME", help="repository on the Hub; made if it is not there"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="keep what is uploaded in this directory")
    parser.add_argument("--no-upload", action="store_true", help="only write the files to --output")
    parser.add_argument(
        "--label-map", metavar="JSON", help="label map to add (default: the run's own, where it was scored)"
    )
    parser.add_argument("--license", default="other", metavar="ID", help="license of the weights, as the Hub spells it")
    parser.add_argument("--private", action="store_true", help="a repository that is made is private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to (default: the main one)")


def run(args: argparse.Namespace) -> int:
    """Writes the files, uploads them, and says where they are."""
    if args.no_upload and args.output is None:
        raise ValueError("--no-upload needs --output DIR: where the files are to be written")
    if args.output:
        return _push(args, args.output)
    with tempfile.TemporaryDirectory(prefix="u2seg-push-") as temporary:
        return _push(args, Path(temporary))


def _push(args: argparse.Namespace, output: Path) -> int:
    write_hub_files(args.run, output, args.to, label_map=args.label_map, license_id=args.license)
    names = ", ".join(sorted(path.name for path in output.iterdir() if path.is_file()))
    print(f"{names} in {output}" if args.output else f"files: {names}")
    if not args.no_upload:
        print(f"uploaded: {upload(output, args.to, private=args.private, revision=args.revision)}")
        print(f"use it: u2seg predict PHOTOS --config-file hf://{args.to}/config.yaml --output predictions")
    return 0
