"""The entry point of the command ``u2seg``: finds the subcommand, parses its arguments, turns its errors into one line."""

import argparse
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType

from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from u2seg.cli.arguments import split_overrides
from u2seg.features.vit_weights import WeightsError
from u2seg.utils.manifest import TooManyFailuresError
from u2seg.utils.write_errors import REMEDIES
from u2seg.version import __version__

COMMANDS = {
    "demo": "render scenes, label, train, score and show them: the whole pipeline in minutes",
    "run": "from photos to labels, a trained model, predictions and a page of images",
    "config": "write a configuration file to start from",
    "labels": "turn unlabeled photos into panoptic pseudo-labels",
    "clusters": "name the clusters of labels, and make several into one",
    "show": "write a page that shows labels or predictions on their images",
    "show-samples": "draw training samples as the trainer gets them",
    "train": "train or evaluate a model, as Detectron2's train_net.py does",
    "predict": "run a trained model on images",
    "serve": "segment images in the browser with a trained model",
    "score": "score saved tables or panoptic files, without a model",
    "evaluate-masks": "class-agnostic AP and AR of any masks",
    "self-train": "improve a model by its own confident predictions",
    "luss": "PASS: large-scale unsupervised semantic segmentation",
    "prepare": "make the annotation files of a dataset from its published ones",
    "export": "write a model as ONNX or TorchScript, checked against it",
    "convert": "convert published weights, trained models, and labels for other tools",
    "push": "put a trained model on the Hugging Face Hub, with a model card",
    "doctor": "check the installation, devices, weights and datasets",
}

# What these say concerns their own developers: which build of FAISS was loaded, which tracer Detectron2 asks for.
_NOISY_LOGGERS = ("faiss.loader", "torch.fx._symbolic_trace")

# What a wrong input, a missing file or a full disk raises; anything else is a defect of this program and keeps its traceback.
EXPECTED_ERRORS = (
    OSError,
    ValueError,
    FloatingPointError,
    ModuleNotFoundError,
    TooManyFailuresError,
    WeightsError,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: words after ``u2seg``; None takes them from the process.

    Returns:
        The exit status: 0 success, 1 an error, which was printed in one line, 130 stopped by Ctrl-C, 141 nobody reads the output.
        A wrong command line exits with 2.
    """
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        print("stopped; finished work is kept, and most commands go on from it when run again", file=sys.stderr)
        return 130


def _run(argv: Sequence[str]) -> int:
    command, args = parse_arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # A log that cannot be written, on a full disk for example, does not deserve one traceback for each line.
    logging.raiseExceptions = False
    warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release")
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        status = command.run(args) or 0
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except EXPECTED_ERRORS as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 141
        if args.debug:
            raise
        print(f"error: {_message(error)}", file=sys.stderr)
        _give_up_full_logs()
        return 1
    except ProcessRaisedException as error:  # in one of several processes
        kind, message = _original(str(error))
        if args.debug or kind not in _names(EXPECTED_ERRORS):
            raise
        print(f"error: {message}", file=sys.stderr)
        return 1
    except ProcessExitedException as error:
        if args.debug:
            raise
        memory = "; the machine may have run out of memory" if error.signal_name == "SIGKILL" else ""
        print(f"error: {error}{memory}. Run the same command again: it goes on where it was", file=sys.stderr)
        return 1


def _nobody_reads() -> bool:
    """Returns whether the reader of the output, `head` for example, has ended; what is still to be written then goes nowhere."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def parse_arguments(argv: Sequence[str]) -> tuple[ModuleType, argparse.Namespace]:
    """Returns the module of the subcommand and its arguments; a wrong command line prints the reason and exits with 2.

    Args:
        argv: words after ``u2seg``.
    """
    parser = argparse.ArgumentParser(
        prog="u2seg",
        description="Unsupervised instance, semantic and panoptic segmentation for Detectron2.",
        epilog="`u2seg COMMAND --help` explains a command. Commands that take KEY VALUE accept any configuration key.",
    )
    parser.add_argument("--version", action="version", version=f"u2seg {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((word for word in argv if not word.startswith("-")), None)
    command = None
    for name, summary in COMMANDS.items():
        if name == chosen:
            command = import_module(f"u2seg.cli.{name.replace('-', '_')}")
            subparser = subparsers.add_parser(
                name,
                help=summary,
                description=command.__doc__,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            command.add_arguments(subparser)
            subparser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        else:
            subparsers.add_parser(name, help=summary)
    pairs, others = split_overrides(argv)
    args, words = parser.parse_known_args(others)
    if command is None:
        parser.error(f"choose a command: {', '.join(COMMANDS)}")
    _take_overrides(args, [*pairs, *words], subparser)
    return command, args


def _take_overrides(args: argparse.Namespace, words: list[str], parser: argparse.ArgumentParser) -> None:
    """Puts the words that no argument took into ``args.opts``, where the command takes KEY VALUE pairs."""
    unknown = [word for word in words if word.startswith("--")]
    takes_overrides = hasattr(args, "opts")
    if unknown or (words and not takes_overrides):
        options = re.findall(r"--[\w-]+", parser.format_usage())
        close = get_close_matches(unknown[0].partition("=")[0], options, n=1) if unknown else []
        hint = f"; did you mean {close[0]}?" if close else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown or words)}{hint}")
    if takes_overrides:
        args.opts = words
        if len(words) % 2:
            parser.error(f"settings are KEY VALUE KEY VALUE ..., got {len(words)} words: {' '.join(words)}")


def _message(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        remedy = REMEDIES.get(error.errno or 0)
        named = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
        return f"{named}; {remedy}" if remedy else named
    if text.startswith("Caught ") and "Traceback (most recent call last):" in text:  # in a worker of a data loader
        return _original(text)[1]
    return text or type(error).__name__


def _give_up_full_logs() -> None:
    """Lets go of what log files on a full disk still hold in memory, or Python would end with an error about each of them."""
    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        _give_up_if_full(handler)


def _give_up_if_full(handler: logging.Handler) -> None:
    try:
        handler.flush()
    except OSError:
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), handler.stream.fileno())  # type: ignore[attr-defined]  # only streams are flushed
    except ValueError:  # it is closed already
        return


def _original(text: str) -> tuple[str, str]:
    """Returns the kind and the message of the error of another process, which came with its traceback as text."""
    last = text.rpartition("Traceback (most recent call last):\n")[2].rstrip()
    # The lines of the traceback are indented, those of the message come after them.
    found = re.search(r"^(?:\w+\.)*(\w+)(?:: (.*))?\Z", last, re.MULTILINE | re.DOTALL)
    if found is None:
        return "", last
    return found[1], found[2] or found[1]


def _names(errors: tuple[type[BaseException], ...]) -> set[str]:
    """Returns the names of errors and of all that derive from them."""
    names = {error.__name__ for error in errors}
    for error in errors:
        names |= _names(tuple(error.__subclasses__()))
    return names


if __name__ == "__main__":
    sys.exit(main())
