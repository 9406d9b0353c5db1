"""Measures zero-shot AUROC with and without equal texts as positives, where 60 % of the reports have one text.

    python benchmarks/same_text.py --out FOLDER

The script builds phantoms in which 43 % of the patients never have a finding. So six reports in ten say "No acute
findings.". For each seed it trains configs/phantom_reports.py with SigLIP's loss (arXiv 2303.15343) for some hundred
steps: once with the own pair as the only positive (the diagonal), and once with equal texts as positives too. It tests
with the prompts of configs/prompts/phantom_impression.json. A softmax would show no difference: if equal texts have
equal embeddings, both kinds of positives give the same gradients. The data set in FOLDER is used again.
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
    results = {name: [auroc(args.out, data, name, seed, args.steps) for seed in seeds] for name in POSITIVES}
    print(table(results, seeds))


def medjax(*args: object) -> None:
    subprocess.run([sys.executable, '-m', 'medjax', *map(str, args)], check=True)


def auroc(out: Path, data: Path, positives: str, seed: str, steps: int) -> dict[str, float]:
    """Trains and tests one run: the zero-shot AUROC of each finding, and their mean, at the last step."""
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
    (file,) = (run / 'probes' / str(steps)).glob('phantom.zero_shot-*.json')
    result = json.loads(file.read_text())
    return {label: row['value'] for label, row in result['results']['auroc'].items()}


def table(results: dict[str, list[dict[str, float]]], seeds: list[str]) -> str:
    """A Markdown table: the AUROC of each finding by seed, for both kinds of positives, and the mean difference."""
    lines = [
        f'| finding | {" | ".join(results)} | difference, 95 % t interval over {len(seeds)} seeds |',
        '|---|---|---|---|',
    ]
    for label in results['diagonal'][0]:
        without, with_text = (np.array([aurocs[label] for aurocs in results[name]]) for name in POSITIVES)
        gain = with_text - without
        low, high = stats.t.interval(0.95, len(gain) - 1, gain.mean(), stats.sem(gain))
        cells = [' '.join(f'{x:.3f}' for x in values) for values in (without, with_text)]
        lines.append(f'| {label} | {" | ".join(cells)} | {gain.mean():+.3f} [{low:+.3f}, {high:+.3f}] |')
    return '\n'.join(lines)


if __name__ == '__main__':
    main()
