"""Processes of this machine that do not outlive what they work for."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from types import TracebackType
from typing import Any


class Workers(ExitStack):
    """Processes that stay alive, with what they hold, from one :meth:`run` to the next; the first one starts them.

    They end when the ``with`` block ends: at once if it ends with an error. They also end with this process, however that ends.
    """

    def __init__(self, count: int):
        """Takes how many."""
        super().__init__()
        context = multiprocessing.get_context("spawn")
        # One pool a worker: a worker keeps its process.
        self._pools = [
            self.enter_context(ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent))
            for _ in range(count)
        ]
        self._processes: set[multiprocessing.process.BaseProcess] = set()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Ends the processes, and after an error does not wait for what they are doing."""
        if kind is not None:
            for process in self._processes:
                process.terminate()
        return super().__exit__(kind, error, traceback)

    def run(self, function: Callable[..., Any], tasks: Sequence[tuple]) -> None:
        """Calls ``function(*tasks[i])`` in worker ``i`` and waits for all of them.

        Args:
            function: of a module, so that the processes find it.
            tasks: arguments that can be pickled, one tuple for each worker.

        Raises:
            concurrent.futures.process.BrokenProcessPool: a process was killed.
            Exception: the first one that a call raised, as soon as it did.
        """
        others = set(multiprocessing.active_children())
        calls = [pool.submit(function, *task) for pool, task in zip(self._pools, tasks, strict=True)]
        self._processes |= set(multiprocessing.active_children()) - others
        for call in as_completed(calls):
            call.result()


def end_with_parent() -> None:
    """Ends this process as soon as its parent has ended, however that happened."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
