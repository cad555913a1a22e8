"""Keys of training: ``SOLVER``, ``HOOKS``, ``LOG_TO``."""

from detectron2.config import CfgNode as CN

from u2seg.config.validation import (
    COUNT,
    NON_NEGATIVE,
    POSITIVE,
    Rule,
    choice,
    flag,
    integer,
    number,
    register_rules,
    several,
    text,
)


def add_solver_config(cfg: CN) -> None:
    """Adds the keys of training to a configuration, in place."""
    cfg.SOLVER.OPTIMIZER = "SGD"  # name in u2seg.engine's OPTIMIZER_REGISTRY: "SGD", "AdamW" or "LARC"
    # SOLVER.CLIP_GRADIENTS.CLIP_TYPE may also be "full_model": one norm over all gradients [ours].
    # Detectron2's "norm" clips each tensor alone [CutLER, U2Seg release].
    # Learning-rate multipliers: pairs (beginning of a parameter's name, factor); the longest that
    # fits counts. Few-label fine-tuning: (("roi_heads", 4.0), ("sem_seg_head", 4.0)) [U2Seg and
    # CutLER, whose own keys have no effect].
    cfg.SOLVER.LR_MULTIPLIERS = ()
    # Batches whose gradients are averaged into one step; a batch holds IMS_PER_BATCH /
    # ACCUMULATION_STEPS images [ours].
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # Of SOLVER.AMP: "auto" (bfloat16 where the GPU has it, else float16 with loss scaling; off on a
    # CPU), "bf16", "fp16".
    cfg.SOLVER.AMP.PRECISION = "auto"
    # Exponential moving average of the weights: saved in the checkpoints as "ema", scored, and
    # written as model_ema.pth [ours].
    cfg.SOLVER.EMA = CN()
    cfg.SOLVER.EMA.ENABLED = False
    cfg.SOLVER.EMA.DECAY = 0.999
    # Names in u2seg.engine's HOOK_REGISTRY: what else happens while a model trains. PASS's
    # pretraining monitors k-NN accuracy.
    cfg.HOOKS = ()
    # Where losses and scores go beside the console, metrics.json and TensorBoard's file: names in
    # u2seg.engine's LOG_WRITER_REGISTRY, "wandb" and "mlflow" [ours].
    cfg.LOG_TO = ()


def _is_multiplier(pair: object) -> bool:
    return isinstance(pair, (tuple, list)) and len(pair) == 2 and text().accepts(pair[0]) and POSITIVE.accepts(pair[1])


register_rules(
    {
        "SEED": integer(high=2**63 - 1),
        "HOOKS": several(text()),
        "LOG_TO": several(text()),
        "SOLVER.OPTIMIZER": text(),
        "SOLVER.BASE_LR": POSITIVE,
        "SOLVER.MAX_ITER": COUNT,
        "SOLVER.STEPS": several(NON_NEGATIVE),
        "SOLVER.IMS_PER_BATCH": integer(1, 1 << 20),
        "SOLVER.MOMENTUM": number(0, 1),
        "SOLVER.WEIGHT_DECAY": number(0),
        "SOLVER.WARMUP_ITERS": NON_NEGATIVE,
        "SOLVER.CHECKPOINT_PERIOD": COUNT,
        "SOLVER.AMP.ENABLED": flag(),
        "SOLVER.AMP.PRECISION": choice("auto", "bf16", "fp16"),
        "SOLVER.CLIP_GRADIENTS.ENABLED": flag(),
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": choice("value", "norm", "full_model"),
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": POSITIVE,
        "SOLVER.LR_MULTIPLIERS": several(
            Rule("a pair of the beginning of a parameter's name and a factor above 0", _is_multiplier)
        ),
        "SOLVER.ACCUMULATION_STEPS": integer(1, 1 << 20),
        "SOLVER.EMA.ENABLED": flag(),
        "SOLVER.EMA.DECAY": number(0, 1),
    }
)
