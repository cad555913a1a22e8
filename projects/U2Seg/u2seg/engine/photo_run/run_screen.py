"""The plan of a run as one screen of text: what was found, what will be done, what it will cost."""

import shutil
import textwrap

from u2seg.engine.photo_run.run_estimates import format_bytes
from u2seg.engine.photo_run.run_plan import RunPlan
from u2seg.utils.files import nearest_directory
from u2seg.utils.progress import format_seconds

FEW_PHOTOS = 20  # fewer are warned of
MANY_UNREADABLE = 0.01  # share of the photos looked at above which unreadable ones are warned of


def format_plan(plan: RunPlan) -> str:
    """Returns the plan as one screen of text: what was found, what will be done, what it will cost."""
    cfg = plan.cfg
    machine, photos, count = plan.machine, plan.photos, len(plan.photos.names)
    gpu = f"{machine.gpus} GPU{'s' if machine.gpus > 1 else ''}" if machine.gpus else "no GPU"
    free = shutil.disk_usage(nearest_directory(plan.output)).free
    memory = f"{machine.memory_bytes / 2**30:.1f} GiB of memory free, " if machine.memory_bytes else ""
    scores = "none (no --ground-truth)"
    if plan.num_scored:
        scores = f"{plan.num_scored} photos have ground truth in {plan.ground_truth}; only scoring reads it"
    elif cfg.DATASETS.TEST:
        scores = f"on {', '.join(cfg.DATASETS.TEST)}, as {plan.config.base} says"
    clusters = "the square root of the number of masks"
    if not plan.config.is_free("CLUSTERS.NUM_CLUSTERS"):
        clusters = str(cfg.CLUSTERS.NUM_CLUSTERS)
    length = f"{cfg.SOLVER.MAX_ITER} iterations"
    if plan.minutes_to_fill is not None:
        length = "as many iterations as fit"
    threads = plan.threads
    lines = [
        *_entry("photos", f"{count} in {photos.root}, about {photos.size[1]}x{photos.size[0]} pixels"),
        *_entry("machine", f"{machine.cores} cores, {memory}{gpu}, {free / 2**30:.1f} GiB of disk free"),
        *_entry("features", plan.features.description),
        *_entry("scores", scores),
        "",
        *_entry("settings", f"{plan.config.base}, fitted to these photos: {plan.output / plan.config.path.name}"),
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
            f"labels {_threads(threads.refining * threads.numerical, threads.decoding)}; training "
            f"{_threads(threads.training, threads.loading)}{_tried(plan)}",
        ),
        "",
        *_cost_table(plan),
        *(line for warning in plan_warnings(plan) for line in _entry("warning", warning)),
    ]
    return "\n".join(lines)


def _cost_table(plan: RunPlan) -> list[str]:
    """Returns a row for each stage and their sum: seconds and bytes add up, and the stage that needs most memory counts."""
    stages = plan.stages
    lines = [_row("", "time", "memory", "disk", "how it is known")]
    for stage in stages:
        memory = format_bytes(stage.memory) if stage.memory else ""
        disk = format_bytes(stage.disk) if stage.disk else ""
        time = format_seconds(stage.seconds) if stage.basis != "done" else ""
        lines.append(_row(stage.name, time, memory, disk, stage.basis))
    total = sum(stage.seconds for stage in stages)
    most = max(stage.memory for stage in stages)
    all_disk = format_bytes(sum(stage.disk for stage in stages))
    lines.append(_row("in all", format_seconds(total), format_bytes(most), all_disk, "memory: the largest"))
    if not plan.size.has_model:
        checkpoint = format_bytes(plan.cost.checkpoint_bytes)
        lines.append(f"  Training writes a second checkpoint before it deletes the first; one, {checkpoint}, stays.")
    if plan.trains_anew:
        lines.append(
            "  The model in the output was trained with other settings: it is set aside, and a new one is trained."
        )
    minutes = plan.minutes_to_fill
    if minutes is not None and total > 1.05 * minutes * 60:
        lines.append(
            f"  This is more than {minutes:g} minutes: the other stages take what they take, and training gets at least a third of the"
            " minutes."
        )
    return lines


def _row(name: str, time: str, memory: str, disk: str, basis: str) -> str:
    return f"  {name:13s}{time:14s}{memory:10s}{disk:10s}{basis}".rstrip()


def plan_warnings(plan: RunPlan) -> list[str]:
    """Returns what a user should know before the run: few photos, and photos that cannot be read."""
    found = []
    photos, count = plan.photos, len(plan.photos.names)
    if count < FEW_PHOTOS:
        found.append(
            f"{count} photo{'s are' if count > 1 else ' is'} very few. Clusters need several examples of each kind: expect labels that "
            "show how it works, and a model that has learned these photos by heart. Some hundreds are better"
        )
    if len(photos.unreadable) > MANY_UNREADABLE * photos.num_looked_at:
        first = photos.unreadable[0]
        found.append(
            f"{len(photos.unreadable)} of the {photos.num_looked_at} photos looked at cannot be read, such as {first.file_name} "
            f"({first.reason}). They are left out and named in {plan.output / 'labels' / 'failures.json'}; the run ends with an error "
            f"where they are more than {plan.cfg.MASKS.MAX_FAILURES:.0%} of the photos (MASKS.MAX_FAILURES)"
        )
    return found


def _threads(count: int, processes: int) -> str:
    """Returns the threads that compute and, where there are such, the processes that read photos beside them."""
    beside = f" and {processes} process{'es' if processes > 1 else ''} that read{'s' if processes == 1 else ''} photos"
    return f"{count} thread{'s' if count > 1 else ''}{beside if processes else ''}"


def _tried(plan: RunPlan) -> str:
    """Returns the seconds of a training step with each number of threads that was tried; "" where there was one."""
    seconds = plan.cost.iteration_seconds
    if len(seconds) == 1:
        return ""
    return f" (an iteration takes {', '.join(f'{value:.2f} s with {count}' for count, value in seconds.items())})"


def _entry(name: str, text: str) -> list[str]:
    return textwrap.wrap(text, 110, initial_indent=f"  {name:10s}", subsequent_indent=" " * 12, break_long_words=False)
