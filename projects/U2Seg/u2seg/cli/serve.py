"""Opens a page in the browser on which a trained model segments the images that are dropped on it.

    u2seg serve output/my/model
    u2seg serve hf://org/name --label-map label_map.json

MODEL is a training's directory, a released model, or one on the Hugging Face Hub. The page shows panoptic, instance and semantic views,
and gives panoptic PNG and JSON. Only this machine can open it, unless --host says otherwise. Needs the extra `serve`
(pip install 'u2seg[serve]').
"""

import argparse

from u2seg.cli.arguments import add_overrides
from u2seg.web_app import LOOPBACK, open_model, start_server


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument("model", help="directory of a model, or hf://org/name")
    parser.add_argument("--label-map", metavar="JSON", help="a saved label map: clusters have its category names")
    parser.add_argument(
        "--host", default=LOOPBACK, help=f"address to listen on (default {LOOPBACK}, this machine alone)"
    )
    parser.add_argument("--port", type=int, default=7860, help="port (default 7860)")
    parser.add_argument("--max-megabytes", type=int, default=20, metavar="N", help="largest file accepted (default 20)")
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Serves until it is interrupted."""
    predictor = open_model(args.model, args.label_map, args.opts)
    app, address = start_server(predictor, host=args.host, port=args.port, max_megabytes=args.max_megabytes)
    print(f"U2Seg at {address} (Ctrl-C ends it)")
    app.block_thread()
    return 0
