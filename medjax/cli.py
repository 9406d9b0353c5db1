"""`medjax <command>`: finds the command and shows a user's mistake as one line. Nothing heavy is imported before."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from typing import NoReturn

from medjax import __version__
from medjax.errors import UserError, suggest

COMMANDS = {
    'build': 'source files -> records, splits, an audit of what was dropped',
    'audit': 'data sets -> leaks, duplicates and contradictions in and between them; exit code 1 for a leak',
    'reduce': 'a data set -> one without the training slices that repeat others of their volume',
    'show': 'a data set -> one HTML page to look at',
    'tokenizer': 'data sets -> a vocabulary trained on their texts',
    'train': 'a config and records -> checkpoints, exports, metrics',
    'config': 'a config -> all its values as JSON; two configs or runs -> the values that differ',
    'probe': 'exports and records -> results with intervals',
    'report': 'a run -> one HTML page to look at',
}
HELP = f"""medjax {__version__}: pretraining of medical image encoders; every method is a configuration.

    medjax <command> [options]

{chr(10).join(f'    {name:10} {text}' for name, text in COMMANDS.items())}

The way from a folder of images to a judged encoder:

    medjax build phantom --records 2000 --out data/phantom
    medjax train --config configs/demo.py --data data/phantom --workdir runs/demo
    medjax probe --run runs/demo --data data/phantom
    medjax report --run runs/demo

`medjax <command> --help` tells what a command takes."""


def main(argv: list[str] | None = None) -> int:
    """Runs one command; its exit code, or 2 for a user's mistake, 70 for a bug, 130 after Ctrl-C, 143 after SIGTERM.

    141 where nobody reads the output any more.
    """
    name, *rest = (sys.argv[1:] if argv is None else argv) or ['--help']
    if argv is None and name != 'train':  # the process is ours; train saves its step at a SIGTERM
        signal.signal(signal.SIGTERM, terminate)
    try:
        return run(name, rest)
    except UserError as error:
        print(f'medjax: {error}', file=sys.stderr)
        code = 2
    except Terminated:
        print(f'medjax: {name} was stopped by SIGTERM', file=sys.stderr)
        code = 143
    except KeyboardInterrupt:
        print(f'medjax: {name} was stopped from the keyboard', file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our output has gone, as in `medjax … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception:
        traceback.print_exc()
        code = 70  # a bug; 1 is what a command found: a leak, a probe that failed
    if one_of_several():
        # At a normal exit jax waits for the other processes of the run, which may be waiting for this one.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def run(name: str, argv: list[str]) -> int:
    if name in ('-h', '--help', 'help'):
        print(HELP)
        return 0
    if name in ('-V', '--version'):
        print(f'medjax {__version__}')
        return 0
    if name not in COMMANDS:
        raise UserError(f'there is no command {name!r}{suggest(name, COMMANDS)}')
    return importlib.import_module(f'medjax.commands.{name}').main(argv)


class Terminated(KeyboardInterrupt):
    """A SIGTERM: what cleans up after Ctrl-C cleans up after it."""


def terminate(*_: object) -> NoReturn:
    raise Terminated


def one_of_several() -> bool:
    runtime = sys.modules.get('medjax.parallel.runtime')  # a command that has not imported it runs alone
    return runtime is not None and runtime.several()
