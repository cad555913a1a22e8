"""Keeps libraries off the screen: what they print, log and warn goes to a file."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


@contextlib.contextmanager
def quiet_screen(log_file: str | Path) -> Iterator[None]:
    """Sends to a file what is printed, logged or warned in this process while the block runs.

    Standard error itself stays as it is: :class:`u2seg.utils.progress.Progress` and errors still reach the screen. Handlers that
    libraries add within the block, as Detectron2's ``setup_logger`` does for standard output, write to the file and are removed at
    its end.

    Args:
        log_file: is appended to; its directory is made.
    """
    path = Path(log_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", buffering=1) as file:
        removed = _remove_handlers({sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__})
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s"))
        # A logger of its own ways, as PyTorch's, would else fall back to logging's last resort: the screen.
        apart = {logger for logger, _ in removed if not logger.propagate}
        for logger in (logging.getLogger(), *apart):
            logger.addHandler(handler)
        logging.captureWarnings(True)
        try:
            with contextlib.redirect_stdout(file):
                yield
        finally:
            logging.captureWarnings(False)
            _remove_handlers({file})
            for logger, screen_handler in removed:
                logger.addHandler(screen_handler)


def _remove_handlers(streams: set[TextIO | None]) -> list[tuple[logging.Logger, logging.StreamHandler]]:
    """Removes the handlers that write to one of the streams, from all loggers; returns them with their loggers."""
    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    found = [
        (logger, handler)
        for logger in loggers
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream in streams
    ]
    for logger, handler in found:
        logger.removeHandler(handler)
    return found
