"""Do equal texts count as positives? Zero-shot AUROC with and without, where 60 % of the reports say the same.

    python benchmarks/same_text.py --out FOLDER

Builds a phantom 43 % of whose patients never have a finding, so that six reports in ten say "No acute findings.",
trains configs/phantom_reports.py with SigLIP's loss (arXiv 2303.15343) for some hundred steps, once with the diagonal
as the positives and once with equal texts as well, for each seed, and asks configs/prompts/phantom_impression.json.
With a softmax there would be nothing to see: there equal texts of equal embeddings have the diagonal's gradients.
What lies in FOLDER already is not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy import stats

ROOT = Path(__file__).parents[1]
POSITIVES = {'diagonal': ['identity'], 'equal texts': ['identity', 'text']}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--out', required=True, type=Path)
    parser.add_argument('--seeds', default='0,1,2')
    parser.add_argument('--steps', type=int, default=500)
    args = parser.parse_args()
    data, seeds = args.out / 'data', args.seeds.split(',')
    if not data.exists():
        medjax('build', 'phantom', '--records', 16_000, '--size', 64, '--healthy', 0.43, '--out', data)
        medjax('tokenizer', data, '--size', 400)
    found = {name: [auroc(args.out, data, name, seed, args.steps) for seed in seeds] for name in POSITIVES}
    print(table(found, seeds))


def medjax(*args: object) -> None:
    subprocess.run([sys.executable, '-m', 'medjax', *map(str, args)], check=True)


def auroc(out: Path, data: Path, positives: str, seed: str, steps: int) -> dict[str, float]:
    """Of each finding, and their mean, of the export of the last step."""
    run = out / f'{positives.replace(" ", "-")}-{seed}'
    term = (
        "dict(term='pair_sigmoid', rows='student/image/crop/cls>vi', columns='student/text/report/cls>vt', "
        f'positives={POSITIVES[positives]})'
    )
    medjax(
        'train', '--config', ROOT / 'configs/phantom_reports.py', '--data', data, '--workdir', run,
        f'--config.seed={seed}', f'--config.total_steps={steps}', f'--config.terms.0={term}',
    )  # fmt: skip
    prompts = ROOT / 'configs/prompts/phantom_impression.json'
    medjax('probe', '--run', run, '--data', data, '--probes', 'zero_shot', '--prompts', prompts, '--baselines', 'none')
    result = json.loads((run / 'probes' / str(steps) / 'phantom.zero_shot.json').read_text())
    return {label: row['value'] for label, row in result['results']['auroc'].items()}


def table(found: dict[str, list[dict[str, float]]], seeds: list[str]) -> str:
    """Markdown: a row a finding, its AUROC by seed with either kind of positives, and the mean difference."""
    lines = [
        f'| finding | {" | ".join(found)} | difference, 95 % t interval over {len(seeds)} seeds |',
        '|---|---|---|---|',
    ]
    for label in found['diagonal'][0]:
        without, with_text = (np.array([of[label] for of in found[name]]) for name in POSITIVES)
        gain = with_text - without
        low, high = stats.t.interval(0.95, len(gain) - 1, gain.mean(), stats.sem(gain))
        cells = [' '.join(f'{x:.3f}' for x in values) for values in (without, with_text)]
        lines.append(f'| {label} | {" | ".join(cells)} | {gain.mean():+.3f} [{low:+.3f}, {high:+.3f}] |')
    return '\n'.join(lines)


if __name__ == '__main__':
    main()
