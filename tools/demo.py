#!/usr/bin/env python
"""Predicts on pictures with a trained model.

    python tools/demo.py --config-file FILE --input FILE_OR_FOLDER ... --output DIR [MODEL.WEIGHTS MODEL] [KEY VALUE ...]

For each picture: the drawn prediction, panoptic PNG and JSON, COCO results JSON; see u2seg.inference.predict_files. Pictures that
cannot be read are named, the others are done all the same, and the exit status is then 1.
"""

import argparse
import sys

from tqdm import tqdm
from u2seg.config import setup_cfg
from u2seg.inference import Predictor, predict_files


def main() -> int:
    """Parses the command line and predicts; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="YAML file, on disk or among the shipped configs")
    parser.add_argument("--input", nargs="+", required=True, help="picture files, or folders of them")
    parser.add_argument("--output", required=True, help="folder for the results")
    parser.add_argument("--label-map", help="JSON file of a saved label map: clusters bear its categories' names")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="configuration: KEY VALUE ...")
    args = parser.parse_args()
    try:
        predictor = Predictor(setup_cfg(args.config_file, args.opts), args.label_map)
        failures = predict_files(
            predictor,
            args.input,
            args.output,
            on_failure=lambda f: tqdm.write(f"error: {f.file_name}: {f.reason}", file=sys.stderr),
        )
    except (FileNotFoundError, KeyError, ValueError) as error:
        print(f"error: {error.args[0] if len(error.args) == 1 else error}", file=sys.stderr)
        return 1
    print(f"predictions in {args.output}" + (f"; {len(failures)} pictures could not be read" if failures else ""))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
