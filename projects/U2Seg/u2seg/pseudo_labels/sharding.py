"""How several processes, on one machine or on many, share the shards of a stage."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode


@dataclass(frozen=True)
class Worker:
    """One of several workers that fill the same directory.

    Which shards it makes depends on its number alone, so that it can be killed and started again anywhere.

    Attributes:
        index: its number, 0..count-1.
        count: how many workers there are.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        """Refuses a number that no worker has.

        Raises:
            ValueError: ``index`` is not in 0..count-1.
        """
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"worker {self.index}/{self.count} does not exist; expected INDEX/COUNT with INDEX from 0 to COUNT - 1"
            )

    @classmethod
    def parse(cls, text: str) -> "Worker":
        """Returns the worker that a text such as ``"3/8"`` names.

        Raises:
            ValueError: the text is not INDEX/COUNT, or no worker has that number.

        Example:
            >>> Worker.parse("3/8")
            Worker(index=3, count=8)
        """
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal()):
            raise ValueError(f"expected a worker as INDEX/COUNT, such as 3/8, got {text!r}")
        return cls(int(index), int(count))

    def takes(self, shard: int) -> bool:
        """Returns whether shard number ``shard`` is this worker's.

        Example:
            >>> [shard for shard in range(7) if Worker(1, 3).takes(shard)]
            [1, 4]
        """
        return shard % self.count == self.index


def run_local_workers(
    make_shards: Callable[[CfgNode, Path, Path, Worker], None], cfg: CfgNode, images: Path, output: Path, count: int
) -> None:
    """Runs ``make_shards(cfg, images, output, worker)`` in ``count`` processes of this machine and waits for them.

    The processes share the machine's GPUs evenly, unless ``FEATURES.DEVICE`` names one or the CPU.

    Args:
        make_shards: function of a module, so that the new processes find it.
        cfg: configuration.
        images: the image directory.
        output: the stage's directory.
        count: processes, at least 1.

    Raises:
        ChildProcessError: a process was killed. What the workers finished is kept.
    """
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(count, mp_context=context) as pool:
            waiting = [
                pool.submit(make_shards, _on_its_gpu(cfg, index), images, output, Worker(index, count))
                for index in range(count)
            ]
            for future in waiting:
                future.result()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            f"a worker for {output} was killed; the machine may have run out of memory. Run the same command again: it goes on "
            "where it was"
        ) from error


def _on_its_gpu(cfg: CfgNode, index: int) -> CfgNode:
    """Returns a copy of the configuration whose features are computed on the worker's own GPU."""
    cfg = cfg.clone()
    cfg.defrost()
    if torch.cuda.is_available() and cfg.FEATURES.DEVICE in ("auto", "cuda"):
        cfg.FEATURES.DEVICE = f"cuda:{index % torch.cuda.device_count()}"
    cfg.freeze()
    return cfg
