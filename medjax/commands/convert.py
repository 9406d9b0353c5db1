"""`medjax convert`: public weights become an export; an export becomes a folder of another system, or a program.

    medjax convert dinov2-base/ --out EXPORT                        # a public folder or file -> an export
    medjax convert RUN/exports/1000 --to huggingface --out DIR      # for transformers
    medjax convert RUN --to timm --out DIR                          # a run: its newest export
    medjax convert RUN --to meta --out DIR                          # the names of DINOv2's and DINOv3's own code
    medjax convert RUN --to stablehlo --out DIR                     # a program for CPU, CUDA and TPU: needs jax alone

Each folder but an export has a model card, README.md, written from the run around the export. Read it and complete it
before you give the folder to others. The folder appears whole or not at all.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from medjax import files
from medjax.errors import UserError
from medjax.probes import program
from medjax.reports import model_card
from medjax.weights import export, load, to_huggingface, to_meta, to_timm
from medjax.weights.base import ExportWeights

Writer = Callable[[ExportWeights, Path], list[str]]
LAYOUTS: dict[str, Writer] = dict(
    huggingface=to_huggingface.write, timm=to_timm.write, meta=to_meta.write, stablehlo=program.write
)
CARD = 'README.md'
# The files that conversions and exports write, in a folder or in its folders image/ and text/.
OWN = (
    CARD, 'config.json', 'preprocessor_config.json', 'model.safetensors', 'heads.safetensors', 'dino_head.safetensors',
    'ibot_head.safetensors', 'tokenizer.json', 'vocab.txt', 'meta.json', 'weights.safetensors', program.SIGNATURE,
    'image.stablehlo', 'text.stablehlo',
)  # fmt: skip


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    out = Path(args.out).expanduser()
    check_out(out, args.overwrite)
    weights = load.open(os.path.expanduser(args.weights))
    source = weights.path.resolve()
    if out.resolve() in (source, *source.parents) or source in out.resolve().parents:
        raise UserError(f'--out {out} holds the weights that are converted, or lies among them; choose another folder')
    if args.to is None and isinstance(weights, ExportWeights):
        raise UserError(f'{args.weights} is an export already; --to {"|".join(LAYOUTS)} writes it in another layout')
    for note in weights.notes:
        print(note, flush=True)
    exported = weights.exported()
    try:
        with files.writing(f'--out {out}'):
            notes = write_export(exported, out) if args.to is None else write_layout(exported, args.to, out)
    except (OSError, SafetensorError) as error:
        raise UserError(f'--out {out}: cannot be written: {getattr(error, "strerror", None) or error}') from None
    for note in notes:
        print(note, flush=True)
    count = sum(int(np.prod(exported.stored.shape(name))) for name in exported.stored)
    print(f'wrote {out}, from {", ".join(exported.modules)} ({count:,} parameters)')
    if args.to is not None:
        print(f'{out / CARD} is its model card: read it and complete it before you give the folder to others')
    return 0


def check_out(out: Path, overwrite: bool) -> None:
    """UserError where `out` exists and `overwrite` is not set, or where it holds something that is not replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    card = out / CARD
    converted = card.is_file() and model_card.MARK in card.read_text(encoding='utf-8', errors='replace')
    run = next((folder for folder in out.resolve().parents if (folder / 'exports').is_dir()), None)
    if run is not None and out.resolve().parent == run / 'exports':
        raise UserError(f'--out {out} is an export of the run {run.name}, which is not replaced; choose another folder')
    if not converted and not (out / 'meta.json').is_file():
        raise UserError(
            f'--out {out} exists and was not written by `medjax convert`; choose another, or move it away yourself'
        )
    if not overwrite:
        raise UserError(f'--out {out} exists; choose another, or add --overwrite to replace it')
    if others := _others(out):
        more = f' and {len(others) - 3} more' if len(others) > 3 else ''
        raise UserError(
            f'--out {out} holds {", ".join(others[:3])}{more}, which `medjax convert` did not write, and a folder is '
            'replaced as a whole; move this away, or choose another folder'
        )


def _others(out: Path) -> list[str]:
    """The files of a folder, at any depth, that no conversion wrote."""
    own: set[str] = set(OWN)
    if (out / 'meta.json').is_file():
        own.add(str((export.read_meta(out).get('tokenizer') or {}).get('file')))
    found = []
    for path in sorted(out.rglob('*')):
        name = path.relative_to(out)
        place = name.parts[:-1]
        if path.is_dir() and not path.is_symlink():
            continue
        if name.name not in own or place not in ((), ('image',), ('text',)):
            found.append(str(name))
    return found


def write_export(weights: ExportWeights, out: Path) -> list[str]:
    """An export, with the tokenizer that lies beside the weights."""
    tokenizer = weights.meta.get('tokenizer')
    others = {tokenizer['file']: (weights.path / tokenizer['file']).read_bytes()} if tokenizer else {}
    params = export.unflatten({name: weights.stored[name] for name in weights.stored})
    export.save(out, params, dict(weights.meta), others)
    return []


def write_layout(weights: ExportWeights, layout: str, out: Path) -> list[str]:
    """A folder of another system with its model card; returns notes for the user."""
    with files.whole_folder(out) as folder:
        notes = LAYOUTS[layout](weights, folder)
        (folder / CARD).write_text(model_card.card(weights, layout, notes, folder), encoding='utf-8')
    return notes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='medjax convert', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('weights', metavar='WEIGHTS', help='an export, a run, a public folder or a file of weights')
    parser.add_argument('--to', choices=LAYOUTS, help='the layout to write; default: an export of medjax')
    parser.add_argument('--out', required=True, metavar='DIR', help='the folder to write')
    parser.add_argument('--overwrite', action='store_true', help='replace a folder that an earlier conversion wrote')
    return parser
