"""Which commands there are, and the one way in which all of them fail."""

import argparse
import importlib
import importlib.util
import io
import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from longvision.errors import LostPeerError, UserError
from longvision.names import did_you_mean
from longvision.text import one_line
from longvision.version import __version__

USAGE_ERROR, INTERRUPTED = 2, 130
RANK = ("RANK", "SLURM_PROCID", "LOCAL_RANK")  # where torchrun, srun and Lightning number the processes that they start
WORLD = ("WORLD_SIZE", "SLURM_NTASKS")  # how many there are
PATIENCE = 10  # seconds


@dataclass(frozen=True)
class Command:
    """A module of this package with `run(arguments) -> exit code`, and the extra that it needs."""

    help: str
    extra: str | None = None
    probe: str = ""  # a package that only the extra brings


COMMANDS = {
    "train": Command("train a model; without arguments, on the embedded digits", "train", "lightning"),
    "validate": Command("evaluate a run on its validation or test images", "train", "lightning"),
    "predict": Command("say what is in images, with a run's model"),
    "explain": Command("show what goes on inside a model", "train", "matplotlib"),
    "prune": Command("make a smaller EfficientViT out of a trained one", "train", "lightning"),
    "check-data": Command("check images and labels, and draw some", "train", "lightning"),
    "models": Command("list the models with parameters and multiply-adds"),
    "recipes": Command("list the recipes with what they cost and reach"),
    "convert": Command("turn a released checkpoint into safetensors"),
    "benchmark": Command("measure speed and memory of models against each other"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry point. A UserError ends in one sentence and exit code 2, anything else in a traceback."""
    words, parent = list(sys.argv[1:] if arguments is None else arguments), _parent_of_one_of_several()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    command = "longvision"
    try:
        name, rest = _split(words)
        if name is None:
            return 0
        command = f"longvision {name}"
        _require_extra(name, COMMANDS[name])
        return importlib.import_module(f"longvision_cli.{name.replace('-', '_')}").run(rest)
    except KeyboardInterrupt as interrupt:
        print(f"\n{command}: interrupted{f': {interrupt}' if str(interrupt) else ''}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stderr.close()
        return 0
    except (UserError, MissingExtra) as mistake:
        if debug:
            traceback.print_exc()
        together = command == "longvision train" and not isinstance(mistake, LostPeerError)
        if not (together and _is_said_by_the_first(parent)):
            print(f"{command}: error: {_sentence(mistake)}", file=sys.stderr)
        return USAGE_ERROR


class MissingExtra(Exception):
    """A command whose libraries are not installed."""


def _split(words: list[str]) -> tuple[str | None, list[str]]:
    """-> the command and its own arguments; None where the words asked for help or the version only."""
    parser = _parser()
    if not words or words[0] in ("-h", "--help"):
        parser.print_help()
        return None, []
    if words[0] in ("-V", "--version"):
        print(f"longvision {__version__}")
        return None, []
    name, *rest = words
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}: {did_you_mean(name, COMMANDS)}")
    return name, rest


def _parser() -> argparse.ArgumentParser:
    lines = [f"  {name:<10} {command.help}" for name, command in COMMANDS.items()]
    return argparse.ArgumentParser(
        prog="longvision",
        usage="longvision COMMAND [arguments]",
        description="Vision backbones whose cost grows with the number of tokens, not its square.\n\ncommands:\n"
        + "\n".join(lines),
        epilog="`longvision COMMAND --help` says more. --debug, anywhere, shows the traceback of an error.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )


def _require_extra(name: str, command: Command) -> None:
    if command.extra and importlib.util.find_spec(command.probe) is None:
        raise MissingExtra(
            f"it needs the extra {command.extra!r}, which is not installed: in a clone of the repository, "
            f"pip install '.[{command.extra}]'"
        )


def _parent_of_one_of_several() -> int | None:
    """The process that started this one, where this is another than the first of several. Asked for at the start:
    Lightning takes the number of processes out of the environment when it ends."""
    several = _of_the_launcher(WORLD, "1") != "1"
    return os.getppid() if several and _of_the_launcher(RANK, "0") != "0" else None


def _is_said_by_the_first(parent: int | None) -> bool:
    """Whether the first of several processes tells this mistake: all meet a mistake of the user, and the first one's
    end is that of `parent`. torchrun ends this one while it waits."""
    if parent is None:
        return False
    end = time.monotonic() + PATIENCE
    with suppress(KeyboardInterrupt):
        while time.monotonic() < end:
            if os.getppid() != parent:
                return True
            time.sleep(0.05)
    return False


def _of_the_launcher(names: Sequence[str], default: str) -> str:
    return next((os.environ[name] for name in names if name in os.environ), default)


def _sentence(mistake: BaseException) -> str:
    """One line. A data loader's process wraps its error in a traceback: the last line is the error."""
    text = str(mistake).strip() or type(mistake).__name__
    if "Original Traceback" in text:
        text = text.splitlines()[-1].split(": ", 1)[-1]
    return one_line(text)
