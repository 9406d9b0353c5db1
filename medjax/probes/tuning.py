"""Probes that train: a recipe starts from the encoder and learns from the data, and its export is judged.

    job = Tuning('fine_tune')                # configs/fine_tune.py
    name, requirements, run = job.name, job.requirements, job.run

A probe of this kind starts `medjax train` as a process of its own. So the training has checkpoints, metrics and exports
as every run has: it lies in RUN/tuning/<encoder>/<data>.<probe>-<digest>. The digest is that of all that its numbers
depend on. A job that was killed goes on from the last checkpoint, and a finished training is not done again.

The exports of a `Tuning` are compared by their mean AUROC on the choosing half of validation. The best one is judged as
the probe `classifier` judges any export. Without a val split the last export is judged. Recipes that learn no labels
have a subclass with a figure and a judgement of their own (`segment_tuning.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import IO, Any, ClassVar

import numpy as np

import medjax
from medjax import files, recipes
from medjax.errors import UserError
from medjax.parallel import runtime
from medjax.probes import aggregate, encode, label_splits, provenance
from medjax.probes.encode import Encoder
from medjax.probes.evaluate import ProbeInputs, Result, label_requirements, mean_auroc
from medjax.probes.methods import classifier
from medjax.weights import export

FOLDER = 'tuning'  # in RUN
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclasses.dataclass(frozen=True)
class Tuning:
    """A probe that trains a recipe from the encoder that it evaluates."""

    recipe: str  # the name of a shipped recipe, or a file
    tower: str | None = None  # the only kind of tower that the recipe changes, as 'vit'; None: any
    figure: ClassVar[str] = 'mean AUROC'  # by which an export is chosen

    @property
    def name(self) -> str:
        return Path(self.recipe).stem

    def requirements(self, inputs: ProbeInputs) -> dict[str, Any]:
        """What the training depends on besides encoder and data; UserError where it cannot start from the encoder."""
        encoder = inputs.encoder
        if encoder.name in encode.BASELINES or encoder.folder is None:
            raise UserError(
                f'{self.name} starts from trained weights; `medjax train --config {self.name}` alone does not'
            )
        if inputs.cache is None:
            raise UserError(f'{self.name} keeps its training beside the cache of features, and no folder is given')
        tower = encode.image_tower(encoder.meta)
        section = encoder.meta['towers'][tower]
        if 'reads' in section:
            raise UserError(f'{self.name} tunes a tower of images, and the encoder {tower!r} reads other towers')
        if tower != 'image' and 'image' in encoder.meta['towers']:
            raise UserError(
                f"{self.name}: the export has a tower 'image' that is not its encoder {tower!r}; train the recipe by "
                f'hand, with --config.init_from'
            )
        if self.tower not in (None, section['tower']):
            raise UserError(f'{self.name} needs the tower {self.tower!r}, and the encoder is {section["tower"]!r}')
        file = recipes.find(self.recipe)
        return self.check_data(inputs) | dict(
            recipe=hashlib.sha256(file.read_bytes()).hexdigest(), epochs=inputs.epochs, overrides=list(inputs.overrides)
        )

    def check_data(self, inputs: ProbeInputs) -> dict[str, Any]:
        """UserError where the data have nothing to learn from; facts that the result depends on."""
        return label_requirements(inputs)

    def run(self, inputs: ProbeInputs) -> Result:
        """Trains, or goes on, and evaluates the best export."""
        folder = self.folder(inputs)
        with alone(folder) as lock:
            if not (folder / 'DONE').exists():
                self.train(inputs, folder, lock)
        step, values = self.best_export(inputs, folder)
        tuned = judged(inputs, folder, step)
        content, arrays = self.judge(tuned)
        seen = provenance.of(folder, tuned.encoder, inputs.data)
        facts = dict(
            run=str(folder), step=step, recipe=self.recipe, epochs=inputs.epochs, overrides=list(inputs.overrides),
            validation={str(other): value for other, value in values.items()}, **seen,
        )  # fmt: skip
        by = f'{self.figure} on validation' if values else 'the last one'
        chosen = content['chosen'] | dict(recipe=self.recipe, export=step, chosen_by=by)
        return Result(content | dict(chosen=chosen, tuned=facts), arrays)

    def folder(self, inputs: ProbeInputs) -> Path:
        """The folder of the training, named by what its numbers depend on."""
        encoder, data = inputs.encoder, inputs.data
        depends = [
            encoder.weights, encoder.meta['towers'], dict(encoder.image), encoder.size, data.fingerprint,
            self.requirements(inputs), dict(inputs.policy), medjax.__version__,
        ]  # fmt: skip
        digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:8]
        assert inputs.cache is not None  # `requirements` has refused it
        return inputs.cache.parent / FOLDER / str(encoder.name) / f'{data.name}.{self.name}-{digest}'

    def command(self, inputs: ProbeInputs, folder: Path) -> list[str]:
        """The command of the training. Overrides of the user come last, so they win."""
        encoder = inputs.encoder
        assert encoder.folder is not None  # `requirements` has refused it
        image = {name: encoder.image[name] for name in ('channels', 'mean', 'std')}
        overrides = {
            'towers.image': encoder.folder.absolute(), 'image': plain(image), 'views.crop.size': encoder.size,
            'export.fit': 'pad' if encoder.image.get('fit') == 'pad' else 'crop',
        }  # fmt: skip
        overrides |= self.of_data(inputs)
        recipe = self.recipe if inputs.epochs is None else f'{self.recipe}:{inputs.epochs}'
        return [
            *(sys.executable, '-m', 'medjax', 'train', '--config', recipe, '--data', str(inputs.data.path)),
            *('--workdir', str(folder)),
            *(f'--config.{key}={value}' for key, value in overrides.items()),
            *(f'--config.{item}' for item in inputs.overrides),
        ]

    def of_data(self, inputs: ProbeInputs) -> dict[str, Any]:
        """Values of the recipe that encoder, data and options of the probe decide."""
        return {'terms.0.policy': dict(inputs.policy)} if inputs.policy else {}

    def best_export(self, inputs: ProbeInputs, folder: Path) -> tuple[int, dict[int, float]]:
        """The step of the best export, and the figure of each on validation; {} if nothing can be chosen there.

        The export of step 0, whose new layers have learned nothing, has no part in the choice.
        """
        steps = [step for step in export.steps(folder) if step > 0]
        if not steps:
            raise UserError(f'{folder} has no export; delete the folder and run the same command again')
        values = {step: self.on_validation(judged(inputs, folder, step)) for step in steps} if len(steps) > 1 else {}
        known = {step: value for step, value in values.items() if value is not None}
        return max(known, key=lambda step: (known[step], -step)) if known else steps[-1], known

    def on_validation(self, inputs: ProbeInputs) -> float | None:
        """`figure` of an export on validation; None if validation cannot tell."""
        return on_validation(inputs)

    def judge(self, inputs: ProbeInputs) -> Result:
        """The result of the best export."""
        return classifier.run(inputs)

    def train(self, inputs: ProbeInputs, folder: Path, lock: IO[bytes]) -> None:
        """Runs the training, which holds the lock too, to its end; UserError where it fails."""
        title = encode.title(inputs.encoder.name)
        print(f'{title}, {self.name}: trains on {inputs.data.name} in {folder}', flush=True)
        runtime.release_devices()
        code = run_and_pass_signals(self.command(inputs, folder), lock)
        if code or not (folder / 'DONE').exists():
            raise UserError(
                f'the training in {folder} ended before its last step (exit code {code}; its message stands above); '
                'the same command tries again, from its last checkpoint if there is one'
            )


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[IO[bytes]]:
    """The file beside a training whose lock this process holds; waits while another job or its training holds it.

    A lock of `flock` belongs to the open file, so a child that inherits the file holds the lock too.
    """
    path = folder.with_name(f'.{folder.name}.lock')
    with files.writing(f'the training {folder}'):
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open('ab')
    with opened as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(
                f'medjax: another job, or a training whose job was killed, works in {folder}: waits for it',
                file=sys.stderr, flush=True,
            )  # fmt: skip
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # this file system has no locks: a second training there is refused
            pass
        yield lock


def plain(value: Any) -> Any:
    """Lists in place of the tuples and arrays of numbers, as an override writes them."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def run_and_pass_signals(command: list[str], lock: IO[bytes]) -> int:
    """Runs a command and returns its exit code. Ctrl-C and SIGTERM go on to it, and act here once it has ended.

    The command has a session of its own: a Ctrl-C of the terminal reaches it once, through this process. A training
    saves its step and ends then. The command inherits the file `lock`, and with it the lock.
    """
    got: list[int] = []
    child: subprocess.Popen | None = None

    def pass_on(number: int, _: FrameType | None) -> None:
        got.append(number)
        if child is not None:
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        child = subprocess.Popen(command, start_new_session=True, pass_fds=[lock.fileno()])
        for number in got:  # those that came before the command ran
            child.send_signal(number)
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if got:
        os.kill(os.getpid(), got[0])
    return code


def judged(inputs: ProbeInputs, folder: Path, step: int) -> ProbeInputs:
    """The inputs with an export of the training in place of the encoder. It sees of an image what the encoder sees."""
    encoder: Encoder = encode.load(folder / 'exports' / str(step), inputs.encoder.image.get('fit'))
    return dataclasses.replace(inputs, encoder=encoder, cache=folder / 'cache')


def on_validation(inputs: ProbeInputs) -> float | None:
    """The mean AUROC of the classifier on the choosing half of validation; None if no label has both classes there."""
    if not inputs.data.splits.get('val'):
        return None
    found, val = classifier.requirements(inputs)['classifier'], inputs.features('val')
    names = [label for label in inputs.data.labels if label in found['names']]
    scores = classifier.log_odds(inputs.encoder, found, val.cls[:, -1])
    labels = val.labels[:, [inputs.data.labels.index(name) for name in names]]
    whole = label_splits.divided(labels, inputs.cases('val'), names, inputs.seed)
    scores = np.asarray(scores[:, [found['names'].index(name) for name in names]])
    units = aggregate.pool(scores, whole.halves.choosing(labels), whole.cases, inputs.pool)
    return mean_auroc(units.scores, units.labels)
