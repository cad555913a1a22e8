"""Who runs the workers of a label run: this process, processes of this machine, torchrun's, or jobs of a SLURM cluster.

A launcher is a context manager with two methods. ``make(phase)`` has all shards of a phase made; ``finish(phase)`` closes it, in one
process. Existing engines start the processes and watch over them; nothing here talks to another machine.
"""

import contextlib
import os
import time
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode

from u2seg.pseudo_labels.masks.mask_stage import plan_masks
from u2seg.pseudo_labels.phases import LabelRun, Phase, phase_named
from u2seg.pseudo_labels.processes import Workers
from u2seg.pseudo_labels.worker import Worker
from u2seg.utils.manifest import IncompleteStageError

# A barrier waits for the slowest worker of a phase, which may take days.
_LONGEST_PHASE = timedelta(days=60)


class Launcher(contextlib.ExitStack):
    """One worker in this process; the other launchers override what they do otherwise.

    Attributes:
        cfg: the configuration.
        run: the run.
        leads: whether this process is the one that plans and closes.
    """

    leads = True

    def __init__(self, cfg: CfgNode, run: LabelRun):
        """Takes the configuration and the run."""
        super().__init__()
        self.cfg, self.run = cfg, run

    def plan(self) -> None:
        """Lists the images and writes the plan, or checks that they are still those of the plan."""
        if "masks" in self.run.stages:
            plan_masks(self.cfg, self.run.images, self.run["masks"])

    def make(self, phase: Phase) -> None:
        """Has the shards of a phase made."""
        phase.make(self.cfg, self.run, Worker())

    def finish(self, phase: Phase) -> None:
        """Closes a phase whose shards are there."""
        phase.finish(self.cfg, self.run)


class LocalLauncher(Launcher):
    """Processes of this machine, one GPU each where there are several; they live as long as the run, and no longer."""

    def __init__(self, cfg: CfgNode, run: LabelRun, count: int = 0):
        """Takes how many.

        Args:
            cfg: configuration.
            run: the run.
            count: processes; 0: one for each GPU, or on a machine without, the number of cores divided by ``MASKS.NUM_WORKERS``.
        """
        super().__init__(cfg, run)
        self.count = count or _default_count(cfg)
        self._workers = self.enter_context(Workers(self.count))

    def make(self, phase: Phase) -> None:
        """Has the shards made; see the base class.

        Raises:
            ChildProcessError: a process was killed. What the workers finished is kept.
        """
        workers = [Worker(index, self.count) for index in range(self.count)]
        tasks = [(on_gpu(self.cfg, worker.index), self.run, phase.name, worker) for worker in workers]
        try:
            self._workers.run(make_share, tasks)
        except BrokenProcessPool as error:
            raise ChildProcessError(
                f"a worker for {self.run[phase.stage]} was killed; the machine may have run out of memory. Run the same command "
                "again: it goes on where it was"
            ) from error


class TorchrunLauncher(Launcher):
    """This process is one of those that ``torchrun`` started; its rank says which shards are its own. File names do not depend on the
    rank. Rank 0 closes the phases.
    """

    def __init__(self, cfg: CfgNode, run: LabelRun):
        """Reads torchrun's environment variables.

        Raises:
            ValueError: they are not there.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        if missing := [name for name in names if name not in os.environ]:
            raise ValueError(
                f"--launcher torchrun reads {', '.join(missing)} from the environment; start the command by torchrun: "
                "torchrun --nproc-per-node N -m u2seg.cli.main labels ..."
            )
        super().__init__(on_gpu(cfg, int(os.environ["LOCAL_RANK"])), run)
        self._worker = Worker(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
        self.leads = is_leading_rank()

    def __enter__(self) -> "TorchrunLauncher":
        """Meets the other processes."""
        dist.init_process_group("gloo", timeout=_LONGEST_PHASE)
        self.callback(dist.destroy_process_group)
        super().__enter__()
        return self

    def plan(self) -> None:
        """Lists the images in rank 0; see the base class."""
        if self.leads:
            super().plan()
        dist.barrier()

    def make(self, phase: Phase) -> None:
        """Makes this process's share."""
        phase.make(self.cfg, self.run, self._worker)

    def finish(self, phase: Phase) -> None:
        """Waits for all processes, and for rank 0 to close the phase."""
        dist.barrier()
        if self.leads:
            finish_when_visible(phase, self.cfg, self.run)
        dist.barrier()


class SlurmLauncher(Launcher):
    """Jobs of a SLURM cluster, one array a phase, submitted and watched by submitit.

    A job that is preempted or reaches its time limit is queued again and goes on at the first shard that is missing.
    """

    def __init__(
        self,
        cfg: CfgNode,
        run: LabelRun,
        *,
        jobs: int = 4,
        partition: str | None = None,
        minutes: int = 24 * 60,
        cluster: str = "slurm",
    ):
        """Takes what to ask the cluster for.

        Args:
            cfg: configuration.
            run: the run; images and output must have the same paths on all machines.
            jobs: workers.
            partition: of the cluster; None: its default.
            minutes: time limit of a job.
            cluster: submitit's executor: "slurm", or "local" and "debug" for a trial on this machine.

        Raises:
            ModuleNotFoundError: submitit is not installed.
        """
        super().__init__(cfg, run)
        try:
            import submitit
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "--launcher slurm needs submitit: pip install 'u2seg[slurm]'", name="submitit"
            ) from error
        self._jobs = jobs
        self._executor = submitit.AutoExecutor(folder=_job_directory(run.output) / "%j", cluster=cluster)
        self._executor.update_parameters(
            name="u2seg-labels",
            timeout_min=minutes,
            cpus_per_task=cfg.MASKS.NUM_WORKERS + cfg.MASKS.NUM_THREADS + 1,
        )
        # A cluster without GPUs refuses to be asked for none.
        if cfg.FEATURES.DEVICE != "cpu":
            self._executor.update_parameters(gpus_per_node=1)
        if cluster == "slurm":
            self._executor.update_parameters(slurm_array_parallelism=jobs)
            if partition:
                self._executor.update_parameters(slurm_partition=partition)

    def make(self, phase: Phase) -> None:
        """Submits an array and waits for its end.

        Raises:
            ChildProcessError: a job failed for good; the message names its log. What the jobs finished is kept.
        """
        tasks = [(self.cfg, self.run, phase.name, Worker(index, self._jobs)) for index in range(self._jobs)]
        for job in self._executor.map_array(ShareJob(), *zip(*tasks)):
            _wait_for(job, phase)

    def finish(self, phase: Phase) -> None:
        """Closes a phase whose shards other machines wrote."""
        finish_when_visible(phase, self.cfg, self.run)


class ShareJob:
    """What a SLURM job runs: a worker's share. Stopped by the cluster, it is queued again with the same arguments."""

    def __call__(self, cfg: CfgNode, run: LabelRun, phase_name: str, worker: Worker) -> None:
        """Makes the shards that are missing of a worker's share."""
        make_share(cfg, run, phase_name, worker)

    def checkpoint(self, *arguments: Any) -> Any:
        """Returns what submitit queues when the time limit comes or the job is preempted."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


def is_leading_rank() -> bool:
    """Returns whether this process is the one of torchrun's that closes the phases and speaks for all."""
    return os.environ["RANK"] == "0"


def make_share(cfg: CfgNode, run: LabelRun, phase_name: str, worker: Worker) -> None:
    """Makes a worker's share of a phase that is given by its name, since functions do not travel between processes."""
    phase_named(phase_name).make(cfg, run, worker)


def finish_when_visible(phase: Phase, cfg: CfgNode, run: LabelRun, seconds: float = 60) -> None:
    """Closes a phase, and tries again for a while if shards are missing: network file systems show new files late.

    Raises:
        IncompleteStageError: they are missing still; the message names them.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return phase.finish(cfg, run)
        except IncompleteStageError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.5)


def on_gpu(cfg: CfgNode, index: int) -> CfgNode:
    """Returns a copy of the configuration whose features are computed on a GPU of its own, unless a device is named.

    Args:
        cfg: configuration.
        index: of the worker on its machine; workers share the GPUs evenly.
    """
    cfg = cfg.clone()
    cfg.defrost()
    if torch.cuda.is_available() and cfg.FEATURES.DEVICE in ("auto", "cuda"):
        cfg.FEATURES.DEVICE = f"cuda:{index % torch.cuda.device_count()}"
    cfg.freeze()
    return cfg


def _wait_for(job: Any, phase: Phase) -> None:
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        job.result()
    except (FailedJobError, UncompletedJobError) as error:
        raise ChildProcessError(
            f"job {job.job_id} of the {phase.name} phase failed; its log is {job.paths.stderr}. Run the same command again: it makes "
            f"only what is missing. {str(error).strip().splitlines()[-1]}"
        ) from error


def _default_count(cfg: CfgNode) -> int:
    if torch.cuda.is_available() and cfg.FEATURES.DEVICE != "cpu":
        return torch.cuda.device_count()
    return max(1, len(os.sched_getaffinity(0)) // max(1, cfg.MASKS.NUM_WORKERS))


def _job_directory(output: Path) -> Path:
    """Returns where submitit keeps scripts and logs: beside the labels, which hold nothing but labels."""
    return output.absolute().parent / f"{output.name}-jobs"
