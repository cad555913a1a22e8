#!/usr/bin/env python
"""Trains or scores a model.

    python tools/train_net.py --config-file FILE [--num-gpus N] [--resume] [--eval-only] [KEY VALUE ...]

FILE is a path, or the name of a shipped configuration such as ``COCO-PanopticSegmentation/u2seg_R50_800.yaml``. Without a GPU it
runs on the CPU.
"""

from detectron2.engine import default_argument_parser, launch
from u2seg.engine import run_training


def main() -> None:
    """Starts one process for each GPU."""
    args = default_argument_parser(epilog=__doc__).parse_args()
    launch(
        run_training,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


if __name__ == "__main__":
    main()
