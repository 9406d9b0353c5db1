"""Exports of a run: RUN/exports/<step>, the towers and heads of one network with all that a reader of them needs."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import medjax
from medjax import files
from medjax.data.text.tokenizer import Tokenizer
from medjax.data.text.views import FALLBACKS
from medjax.errors import UserError
from medjax.objectives.compose import Objective
from medjax.objectives.features import Feature
from medjax.objectives.terms import Alignment
from medjax.parallel import sharding
from medjax.types import TrainState
from medjax.weights import export


@dataclasses.dataclass(frozen=True, eq=False)
class Exporter:
    """Writes the exports of one run."""

    folder: Path  # RUN
    objective: Objective
    config: Mapping[str, Any]
    fingerprint: str  # of the config
    tokenizer: Tokenizer | None
    is_main: bool  # whether this process writes; all processes take part in gathering
    check: Callable[[], None] = lambda: None  # called before it writes; UserError where RUN is no longer there

    def write(self, step: int, state: TrainState) -> None:
        """RUN/exports/<step>. Once it is whole, deletes the exports that `export.keep` does not keep."""
        cfg = self.config['export']
        paths = tuple(f'{kind}/{name}' for kind in ('towers', 'heads') for name in cfg[kind])
        tree = self.objective.export(state.params, state.aux, cfg['network'], paths)
        temperatures = self._temperatures(state.params['terms'], state.step)
        tree, temperatures = jax.device_get(sharding.gather((tree, temperatures)))
        if self.is_main:
            meta, others = self.meta(step, temperatures)
            for name in cfg['towers']:
                tree['towers'][name], meta['towers'][name] = self.objective.towers[name].exported(
                    tree['towers'][name], meta['towers'][name]
                )
            folder = self.folder / 'exports' / str(step)
            self.check()
            with files.writing(f'the export {folder}'):
                export.save(folder, tree, meta, others)
            if cfg.get('keep') is not None:  # runs may be older than this key
                self.delete_old(step, cfg['keep'])

    def delete_old(self, step: int, keep: int) -> None:
        """Deletes older exports. What prevents it is a warning, because training can go on."""
        try:
            export.delete_old(self.folder, step, keep)
        except (OSError, UserError) as error:
            warnings.warn(f'export.keep={keep}: older exports stay: {error}', stacklevel=2)

    @functools.cached_property
    def _temperatures(self) -> Callable:
        """The temperatures of all terms; compiled at the first export of a run, and used by all later ones."""
        return jax.jit(self.objective.temperatures)

    def meta(self, step: int, temperatures: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
        """meta.json of the export, and the files that lie beside it."""
        config, cfg = self.config, self.config['export']
        seen = self.folder / 'data' / 'seen.npz'
        sizes = [np.max(view['size']) for view in config['views'].values() if 'size' in view]  # texts have none
        meta = dict(
            step=step,
            network=cfg['network'],
            encoder=cfg['encoder'],
            towers={name: config['towers'][name] for name in cfg['towers']},
            heads={name: self.head(name) for name in cfg['heads']},
            pairs=[  # format 2 calls alignments so
                dict(term=name, temperature=float(temperatures[name])) | sides
                for name, alignment in self.objective.alignments.items()
                if (sides := self.image_and_text(alignment))
            ],
            classifiers=[
                dict(term=name, tower=one.of.tower, head=one.of.head) | dict(one.meaning)
                for name, one in self.objective.predictions.items()
                if self.reads_cls(one.of)
            ],
            decoders=[
                dict(term=name, tower=one.of.tower, output=one.of.output, head=one.of.head) | dict(one.meaning)
                for name, one in self.objective.predictions.items()
                if one.meaning['predicts'] == 'structures' and self.reads_one(one.of)
            ],
            image=dict(config['image']) | dict(fit=cfg.get('fit', 'crop')),  # runs may be older than `fit`
            size=int(max(sizes, default=0)),
            config_fingerprint=self.fingerprint,
            seen=hashlib.sha256(seen.read_bytes()).hexdigest() if seen.exists() else None,
            medjax=medjax.__version__,
        )
        tokenizer = self.tokenizer
        if tokenizer is None or not any(self.objective.towers[name].sees == 'text' for name in cfg['towers']):
            return meta, {}
        length = max(view['length'] for view in config['views'].values() if view['view'] == 'text')
        meta['tokenizer'] = dict(
            file=tokenizer.path.name,
            pad=config['tokenizer']['pad'],
            length=length,
            fingerprint=tokenizer.fingerprint,
            tokens=tokenizer.tokens._asdict(),
        )
        return meta, {tokenizer.path.name: tokenizer.raw}

    def image_and_text(self, alignment: Alignment) -> dict[str, Any] | None:
        """The towers and heads that bring images and texts into one space, for readers of the export.

        For each side the tower (its cls) and the head after it; for texts also their length and sections. None where
        the term aligns other features, or features that are not exported.
        """
        image, text = alignment.rows, alignment.columns
        if self.sees(image) == 'text':
            image, text = text, image
        if (self.sees(image), self.sees(text)) != ('image', 'text'):
            return None
        if not all(self.reads_cls(f) for f in (image, text)):
            return None
        if self.objective.towers[text.tower].reads:
            return None
        view = self.config['views'][text.view]
        sections = list(view.get('sections', FALLBACKS))
        return dict(
            image=dict(tower=image.tower, head=image.head),
            text=dict(tower=text.tower, head=text.head, length=view['length'], sections=sections),
        )

    def head(self, name: str) -> dict[str, Any]:
        """The section of a head, with the number of outputs that a term gave it."""
        section = dict(self.config['heads'][name])
        outputs = {one.of.head: one.outputs for one in self.objective.predictions.values()}
        if name in outputs and section.get('out') is None:
            section['out'] = outputs[name]
        return section

    def reads_cls(self, f: Feature) -> bool:
        """Whether a feature is the cls of an exported tower for one view, through one exported head or none."""
        return f.output == 'cls' and self.reads_one(f)

    def reads_one(self, f: Feature) -> bool:
        """Whether a feature is an output of an exported tower for one view, through one exported head or none."""
        exported = self.config['export']
        alone = len(f.inputs) == 1 and len(f.heads) <= 1
        return alone and f.tower in exported['towers'] and f.head in (None, *exported['heads'])

    def sees(self, feature: Feature) -> str:
        return self.objective.views[feature.view].sees
