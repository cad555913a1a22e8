#!/usr/bin/env python
"""Improves a model by its own confident predictions.

    python tools/self_train.py --config-file FILE --rounds N --output DIR [--num-gpus N] MODEL.WEIGHTS FILE [KEY VALUE ...]

The configuration's training set gives pictures and first labels, SOLVER the schedule of one round, SELF_TRAINING the thresholds.
Killed and started again it goes on where it was.
"""

from detectron2.engine import default_argument_parser, launch
from u2seg.engine import run_self_training


def main() -> None:
    """Starts one process for each GPU."""
    parser = default_argument_parser(epilog=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="rounds of labelling and training")
    parser.add_argument("--output", required=True, help="folder for labels and models of the rounds")
    args = parser.parse_args()
    launch(
        run_self_training,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


if __name__ == "__main__":
    main()
