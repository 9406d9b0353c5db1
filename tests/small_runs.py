"""Runs of a few steps in this process, for tests of what happens to the folder of a run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import jax

from medjax import cli, config as configs, train
from medjax.training import metrics

RECIPE = """
def get_config():
    return dict(
        total_steps=8,
        batch_size=8,
        image=dict(channels=1, mean=0.5, std=0.25),
        views={'global': dict(view='crop', part='images', count=1, size=16, area=(0.5, 1.0))},
        towers=dict(image=dict(tower='vit', variant='Ti/8', width=16, depth=1, heads=1, native_size=16)),
        terms=[dict(term='koleo', of='student/image/global/cls')],
        optim=dict(lr=1e-3),
        log=dict(every=2),
        checkpoint=dict(every=4),
        export=dict(every=4),
    )
"""


def build(folder: Path, seed: int = 0) -> Path:
    """The recipe and a data set."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'recipe.py').write_text(RECIPE)
    made = ['phantom', '--records', '48', '--size', '32', '--seed', str(seed), '--out', str(folder / 'data')]
    assert cli.main(['build', *made]) == 0
    return folder


def run(made: Path, folder: Path, *overrides: str, data: Path | None = None) -> int:
    """Trains, in this process."""
    config, datasets = configs.load(str(made / 'recipe.py'), [str(data or made / 'data')], overrides)
    return train.run(config, datasets, folder)


def session(made: Path, folder: Path, overrides: tuple[str, ...], log: Path, life: float) -> None:
    """Trains as the whole life of a process. The kernel kills it when it has used `life` seconds of the processor.

    So a moment does not depend on how busy the machine is. SIGPROF without a handler ends a process at once, as SIGKILL
    does. What the run says goes to the file `log`; its last line is the number of seconds that it used.
    """
    with log.open('w') as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, life)
    jax.config.update('jax_num_cpu_devices', 1)
    metrics.measured_cpu_peak = lambda: 1e15  # measuring it takes longer than the run
    code = run(made, folder, *overrides)
    print(time.process_time(), file=sys.stderr, flush=True)
    sys.exit(code)


def unfinished(folder: Path, step: int = 8, end: int = 8) -> None:
    """Makes a run that finished at step `end` one that was killed after it had saved `step`."""
    (folder / 'DONE').unlink()
    if step < end:
        for kind in ('checkpoints', 'exports'):
            shutil.rmtree(folder / kind / str(end))


def losses(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return {line['step']: line['loss'] for line in lines}


def content(folder: Path) -> dict[str, bytes]:
    """The files of a folder by their path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def same_end(one: Path, other: Path) -> None:
    """Two runs have equal losses and exports, to the bit."""
    assert losses(one) == losses(other)
    assert content(one / 'exports') == content(other / 'exports')
