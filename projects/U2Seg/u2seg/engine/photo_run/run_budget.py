"""How a run spends its time, memory and disk: the length of its training, and what each stage needs."""

from dataclasses import dataclass

from u2seg.engine.photo_run.run_estimates import RunCost

TRAINING_SHARE = 1 / 3  # of --minutes that training gets even where the labels take longer than planned
SPARE_SHARE = 0.03  # of --minutes, for what is not measured: building models, joining files
MAX_PREDICTED = 500  # photos on which a run predicts; u2seg predict does the others
PAGE_ROWS = 12  # of the page, each with a prediction; half as many more where there is ground truth
_PAGE_PREDICTIONS = 1.5  # what a row of the page costs, in predictions: labels and ground truth are drawn as well
_PAGE_BYTES = 3.0  # the same for its files; 2.9 on 12 photos of COCO
_MIN_ITERATIONS = 20


@dataclass(frozen=True)
class Stage:
    """What one stage of a run needs.

    Attributes:
        name: for a table.
        seconds: wall time.
        memory: main memory while it runs, bytes.
        disk: bytes that it writes.
        basis: where the numbers come from.
    """

    name: str
    seconds: float
    memory: int
    disk: int
    basis: str


@dataclass(frozen=True)
class RunSize:
    """How much a run has to do.

    Attributes:
        num_photos: of the run.
        num_scored: photos with ground truth.
        minutes: wanted in all; None: ``max_iter`` says how long training is.
        max_iter: iterations of training; counts where ``minutes`` is None.
        has_labels: whether the labels are finished.
        has_model: whether the training is finished.
        iterations_done: of the training, by an earlier call.
    """

    num_photos: int
    num_scored: int
    minutes: float | None
    max_iter: int
    has_labels: bool
    has_model: bool = False
    iterations_done: int = 0

    @property
    def num_predicted(self) -> int:
        """Photos on which the run predicts."""
        return min(self.num_photos, MAX_PREDICTED)

    @property
    def num_page_rows(self) -> int:
        """Photos on the page."""
        return min(PAGE_ROWS + PAGE_ROWS // 2 if self.num_scored else PAGE_ROWS, self.num_photos + self.num_scored)


_TIMED = "timed on a few photos"


def plan_stages(cost: RunCost, size: RunSize, spent_seconds: float, own_memory: int) -> list[Stage]:
    """Returns the stages of a run, in their order; their seconds and bytes add up to those of the run.

    Args:
        cost: as measured.
        size: of the run.
        spent_seconds: since the program was started.
        own_memory: largest resident memory of this process so far, bytes; it stays while another process makes the labels.
    """
    start = Stage("start", spent_seconds, own_memory, 0, "measured: Python, libraries, checks, a few photos")
    labels = Stage("labels", 0.0, own_memory, 0, "done")
    if not size.has_labels:
        seconds = cost.label_start_seconds + cost.label_seconds * size.num_photos
        label_bytes = cost.label_bytes * size.num_photos
        labels = Stage("labels", seconds, own_memory + cost.label_memory, label_bytes, _TIMED)
    after = stages_after_training(cost, size)
    iterations = size.max_iter
    if size.minutes is not None:
        spent = spent_seconds + labels.seconds
        iterations = num_iterations(size.minutes, spent, cost.iteration, sum(stage.seconds for stage in after))
        after.append(Stage("spare", size.minutes * 60 * SPARE_SHARE, 0, 0, "guessed, for what is not measured"))
    return [start, labels, _training_stage(cost, size, iterations, own_memory), *after]


def _training_stage(cost: RunCost, size: RunSize, iterations: int, own_memory: int) -> Stage:
    if size.has_model:
        return Stage("training", 0.0, own_memory, 0, "done")
    left = max(iterations - size.iterations_done, 0)
    number = f"{left} of {iterations}" if size.iterations_done else f"{iterations}"
    basis = f"{number} iterations; a few were timed"
    return Stage("training", left * cost.iteration, cost.training_memory, 2 * cost.checkpoint_bytes, basis)


def stages_after_training(cost: RunCost, size: RunSize) -> list[Stage]:
    """Returns what a run does after its training; scoring predicts once more."""
    memory, prediction = cost.training_memory, cost.prediction_seconds
    stages = [
        Stage(
            "predictions",
            prediction * size.num_predicted,
            memory,
            cost.prediction_bytes * size.num_predicted,
            f"{_TIMED}; how many objects will be found is guessed",
        ),
        Stage(
            "page",
            prediction * _PAGE_PREDICTIONS * size.num_page_rows,
            memory,
            round(cost.prediction_bytes * _PAGE_BYTES * size.num_page_rows),
            "guessed from the predictions",
        ),
    ]
    if size.num_scored:
        stages.insert(0, Stage("scores", prediction * size.num_scored, memory, 0, "timed as the predictions are"))
    return stages


def num_iterations(minutes: float, spent_seconds: float, iteration_seconds: float, finishing_seconds: float) -> int:
    """Returns how many iterations fill what is left of a run's time, at least 20.

    Args:
        minutes: for the whole run.
        spent_seconds: used up already, by the labels above all. Training gets a third of the time even where nothing is left.
        iteration_seconds: of a training step.
        finishing_seconds: needed after training; see :func:`stages_after_training`.
    """
    left = minutes * 60 * (1 - SPARE_SHARE) - spent_seconds - finishing_seconds
    return max(_MIN_ITERATIONS, int(max(left, minutes * 60 * TRAINING_SHARE) / iteration_seconds))


def training_length(iterations: int, iteration_seconds: float) -> dict[str, object]:
    """Returns the schedule of a training, by key.

    Args:
        iterations: in all.
        iteration_seconds: of a training step.
    """
    return {
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.WARMUP_ITERS": max(1, iterations // 10),
        # Every minute or two: what a kill costs at most.
        "SOLVER.CHECKPOINT_PERIOD": max(10, round(60 / iteration_seconds)),
    }
