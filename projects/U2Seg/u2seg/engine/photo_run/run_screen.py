"""The plan of a run as one screen of text: what was found, what will be done, what it will cost."""

import shutil
import textwrap

from u2seg.config import setup_cfg
from u2seg.engine.photo_run.run_estimates import SAMPLE_PHOTOS, format_bytes
from u2seg.engine.photo_run.run_plan import SPARE_SHARE, TRAINING_SHARE, RunPlan, disk_bytes, label_seconds
from u2seg.utils.progress import format_seconds

_TRAINING_MEMORY_BYTES = 1.2 * 2**30  # PyTorch and Detectron2 with a ResNet-18 at 192 pixels, measured


def format_plan(plan: RunPlan) -> str:
    """Returns the plan as one screen of text: what was found, what will be done, what it will cost."""
    cfg = setup_cfg(plan.config_file)
    machine, photos, count = plan.machine, plan.photos, len(plan.photos.names)
    gpu = f"{machine.gpus} GPU{'s' if machine.gpus > 1 else ''}" if machine.gpus else "no GPU"
    free = shutil.disk_usage(next(p for p in (plan.output, *plan.output.absolute().parents) if p.is_dir())).free
    memory = f"{machine.memory_bytes / 2**30:.1f} GiB of memory free, " if machine.memory_bytes else ""
    unreadable = ""
    if photos.unreadable:
        first = photos.unreadable[0]
        unreadable = f"; {len(photos.unreadable)} cannot be read, such as {first.file_name} ({first.reason})"
    scores = "none (no --ground-truth)"
    if plan.num_scored:
        scores = f"{plan.num_scored} photos have ground truth in {plan.ground_truth}; only scoring reads it"
    elif cfg.DATASETS.TEST:
        scores = f"on {', '.join(cfg.DATASETS.TEST)}, as {plan.base} says"
    clusters = "the square root of the number of masks"
    if not plan.is_free("CLUSTERS.NUM_CLUSTERS"):
        clusters = str(cfg.CLUSTERS.NUM_CLUSTERS)
    length = f"{cfg.SOLVER.MAX_ITER} iterations"
    if plan.minutes is not None and plan.is_free("SOLVER.MAX_ITER"):
        length = "as many iterations as fit"
    threads = plan.threads
    lines = [
        *_entry("photos", f"{count} in {photos.root}, about {photos.size[1]}x{photos.size[0]} pixels{unreadable}"),
        *_entry("machine", f"{machine.cores} cores, {memory}{gpu}, {free / 2**30:.1f} GiB of disk free"),
        *_entry("features", plan.features.description),
        *_entry("scores", scores),
        "",
        *_entry("settings", f"{plan.base}, fitted to these photos: {plan.output / plan.config_file.name}"),
        *_entry(
            "labels",
            f"{cfg.MASKS.GENERATOR} masks at {cfg.FEATURES.IMAGE_SIZE[1]}x{cfg.FEATURES.IMAGE_SIZE[0]} pixels; thing clusters: "
            f"{clusters}; stuff clusters: {cfg.SEMANTICS.NUM_CLUSTERS}",
        ),
        *_entry(
            "training",
            f"{cfg.MODEL.META_ARCHITECTURE} with ResNet-{cfg.MODEL.RESNETS.DEPTH} on {cfg.MODEL.DEVICE}, batches of "
            f"{cfg.SOLVER.IMS_PER_BATCH}, short side {cfg.INPUT.MIN_SIZE_TEST} pixels, {length}",
        ),
        *_entry(
            "threads",
            f"labels: {threads.decoding} decoding processes, {threads.refining} refining, {threads.numerical} numerical; training: "
            f"{threads.loading} loading processes, {threads.training} numerical",
        ),
        "",
        *_cost_table(plan),
    ]
    return "\n".join(lines)


def _cost_table(plan: RunPlan) -> list[str]:
    count = len(plan.photos.names)
    labels = label_seconds(plan)
    rows = [
        (
            "labels",
            "done" if plan.has_labels else f"about {format_seconds(labels)}",
            f"{plan.label_cost.memory_bytes / 2**30:.1f} GiB",
            format_bytes(plan.label_cost.bytes_per_photo * count),
        )
    ]
    training, total = "by SOLVER.MAX_ITER", ""
    if plan.minutes is not None:
        seconds = plan.minutes * 60
        left = max(seconds * (1 - SPARE_SHARE) - labels, seconds * TRAINING_SHARE)
        training, total = f"about {format_seconds(left)}", format_seconds(labels + left + seconds * SPARE_SHARE)
    # How long predictions take is measured when training begins.
    rows.append(
        (
            "the rest",
            training,
            f"{_TRAINING_MEMORY_BYTES / 2**30:.1f} GiB",
            f"{format_bytes(2 * plan.checkpoint_bytes)}",
        )
    )
    lines = [f"  {'':10s}{'time':20s}{'memory':12s}disk", *(f"  {a:10s}{b:20s}{c:12s}{d}" for a, b, c, d in rows)]
    lines.append(f"  {'in all':10s}{total and f'about {total}':20s}{'':12s}{format_bytes(disk_bytes(plan))}")
    lines.append(
        f"  A checkpoint takes {format_bytes(plan.checkpoint_bytes)}; the last one is kept. Labels: timed on {SAMPLE_PHOTOS} photos. "
        "The rest: training, then predictions and page."
    )
    if plan.trains_anew:
        lines.append(
            "  The model in the output was trained with other settings: it is set aside, and a new one is trained."
        )
    if plan.minutes is not None and labels > plan.minutes * 60 * (1 - SPARE_SHARE - TRAINING_SHARE):
        lines.append(
            f"  The labels leave little of {plan.minutes:g} minutes: training gets a third of them nevertheless (--minutes)."
        )
    return lines


def _entry(name: str, text: str) -> list[str]:
    return textwrap.wrap(text, 110, initial_indent=f"  {name:10s}", subsequent_indent=" " * 12, break_long_words=False)
