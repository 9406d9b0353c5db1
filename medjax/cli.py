"""`medjax <command>`: runs a command, and shows a user's mistake as one line.

It imports nothing heavy by itself, so that help and mistakes are fast.
"""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
import traceback
import warnings
from typing import NoReturn

from medjax import __version__
from medjax.errors import UserError, suggest

COMMANDS = {
    'build': 'source files -> a data set with splits, a list of drops, an audit',
    'audit': 'data sets -> leaks, duplicates and contradicting labels in and between them; exit code 1 for a leak',
    'reduce': 'a data set -> a smaller one without training slices that repeat others of their volume',
    'show': 'a data set -> an HTML page with its images, labels and records',
    'tokenizer': 'data sets -> a tokenizer trained on their texts',
    'train': 'a config and data sets -> checkpoints, exports, metrics',
    'plan': 'a config and accelerators that need not be there -> memory, time and exchanges of its step',
    'export': 'a checkpoint -> its export again',
    'config': 'a config -> all its values as JSON; two configs or runs -> the values that differ',
    'encode': 'an encoder and images -> their features in a file',
    'convert': 'public weights -> an export; an export -> a folder for transformers, timm or Meta, or a program',
    'probe': 'exports and a data set -> results with confidence intervals',
    'score': 'generated reports beside the true ones -> BLEU, ROUGE-L, METEOR, F1 of findings',
    'report': 'a run -> an HTML page with its curves, results and pictures',
    'compare': 'runs -> an HTML page and a table with their settings, curves and results side by side',
}
HELP = f"""medjax {__version__}: pretraining of medical image encoders; every method is a configuration.

    medjax <command> [options]

{chr(10).join(f'    {name:10} {text}' for name, text in COMMANDS.items())}

From images to an evaluated encoder, with the embedded data set:

    medjax build phantom --records 2000 --out data/phantom
    medjax train --config demo --data data/phantom --workdir runs/demo
    medjax probe --run runs/demo --data data/phantom
    medjax report --run runs/demo

`medjax <command> --help` describes the options of a command."""


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Other codes: 2 for a user's mistake, 70 for a bug, 75 for a run that hung (`medjax.training.watchdog`), 130 after
    Ctrl-C, 143 after SIGTERM, and 141 where nobody reads the output any more (as in `medjax … | head`).
    """
    warnings.formatwarning = lambda message, *_, **__: f'medjax: {message}\n'  # without a place in the code
    name, *rest = (sys.argv[1:] if argv is None else argv) or ['--help']
    if argv is None and name != 'train':  # not called from a test; train handles SIGTERM itself and saves its step
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
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:
        if name_of_backend := missing_backend(error):
            print(f'medjax: {no_backend(name_of_backend)}', file=sys.stderr)
            code = 2
        elif isinstance(error, OSError) and is_of_the_disk(error):
            print(f'medjax: {error.filename or name}: {error.strerror}', file=sys.stderr)
            code = 2
        else:
            traceback.print_exc()
            code = 70  # a bug; 1 is a result of a command, such as a leak or a failed probe
    if is_one_of_several():
        # At a normal exit, jax waits for the other processes of the run, and they may wait for this one.
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


def is_of_the_disk(error: OSError) -> bool:
    """Whether a disk is full or read-only, or a file is not for this user."""
    from medjax import files

    return files.reason(error) is not None


def missing_backend(error: BaseException) -> str | None:
    """The backend that JAX_PLATFORMS names and that jax cannot start; None for any other error."""
    frames = traceback.extract_tb(error.__traceback__)
    if not os.environ.get('JAX_PLATFORMS') or not frames or not frames[-1].filename.endswith('xla_bridge.py'):
        return None
    match = re.match(r"Unable to initialize backend '(\w+)'", str(error))
    if isinstance(error, AssertionError):  # no backend of this name is registered
        return os.environ['JAX_PLATFORMS'].split(',')[0]
    return match[1] if match else None


def no_backend(name: str) -> str:
    """The sentence where jax has no backend of this name, or cannot start it."""
    extra = {'cuda': 'gpu', 'gpu': 'gpu', 'tpu': 'tpu'}.get(name)
    install = f"pip install 'medjax[{extra}]' brings what it needs" if extra else 'known are cpu, cuda and tpu'
    return f'jax cannot use the backend {name!r} that JAX_PLATFORMS names; {install}, or unset JAX_PLATFORMS'


class Terminated(KeyboardInterrupt):
    """Raised at a SIGTERM. It is a KeyboardInterrupt, so code that cleans up after Ctrl-C also cleans up after it."""


def terminate(*_: object) -> NoReturn:
    raise Terminated


def is_one_of_several() -> bool:
    """Whether this process is one of several of a run."""
    runtime = sys.modules.get('medjax.parallel.runtime')  # a command that never imported runtime has one process
    return runtime is not None and runtime.several()
