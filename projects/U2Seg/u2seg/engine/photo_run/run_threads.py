"""Threads that fit the machine: how its cores are divided, and a process whose numerical libraries keep to that."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from u2seg.pseudo_labels.processes import end_with_parent

T = TypeVar("T")

# NumPy's and SciPy's OpenBLAS, PyTorch and FAISS read these when they are loaded and not again.
_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Threads:
    """How the cores are divided while labels are made, and while a model trains.

    Attributes:
        decoding: processes that decode photos for the masks; 0: the main one decodes.
        refining: threads that refine masks.
        numerical: threads of PyTorch, OpenBLAS and FAISS each while labels are made.
        loading: processes that load training samples; 0: the main one.
        training: threads of PyTorch while a model trains: at most so many; measuring on the photos says how many are best.
    """

    decoding: int
    refining: int
    numerical: int
    loading: int
    training: int


def divide_cores(cores: int, *, network_on_cpu: bool) -> Threads:
    """Returns a division in which the processes and threads that work at one time are no more than the cores (at least two).

    Measured on two busy cores with the hand-made descriptor, labels of six photos from the start of Python: 32 CPU seconds with
    OpenBLAS's default threads, 15 with one (the matrices of one image are too small to share). With one, more workers and refining
    threads than cores cost no CPU time (15 s) and gained a fifth of the wall time or less.

    Args:
        cores: of the machine.
        network_on_cpu: whether the features are a network's, computed on the CPU; it then gets half the cores.
    """
    cores = max(cores, 2)
    decoding = 0 if cores < 4 else min(4, cores // 4)
    numerical = max(1, cores // 2) if network_on_cpu else 1
    refining = max(1, cores - decoding - numerical)
    loading = 0 if cores < 4 else min(8, cores // 4)
    return Threads(decoding, refining, numerical, loading, cores - loading)


def training_threads(most: int, *, on_cpu: bool) -> list[int]:
    """Returns the numbers of PyTorch's threads that are tried for training: one, half of ``most``, and ``most``.

    Args:
        most: what :func:`divide_cores` leaves for training.
        on_cpu: whether the CPU trains; where a GPU does, threads hardly count, and only ``most`` is tried.
    """
    return sorted({1, max(1, most // 2), most}) if on_cpu else [most]


def run_in_process(num_threads: int, function: Callable[..., T], *args: Any) -> T:
    """Returns what ``function(*args)`` returns, run in a new process in which each numerical library uses so many threads.

    The process ends when this one does.

    Args:
        num_threads: at least 1.
        function: of a module, so that the new process finds it.
        *args: what can be pickled.

    Raises:
        ChildProcessError: the process ended without a result, killed for example.
    """
    before = {name: os.environ.get(name) for name in _VARIABLES}
    os.environ.update(dict.fromkeys(_VARIABLES, str(num_threads)))
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
            return pool.submit(function, *args).result()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "the process that made labels ended without a result; the machine may have run out of memory. Run the same command again: "
            "it goes on where it was"
        ) from error
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Lets PyTorch use ``count`` threads inside; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
