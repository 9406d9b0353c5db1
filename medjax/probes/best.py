"""The best export of a run by a figure of a probe on validation: RUN/best.json.

    medjax probe --run RUN --data DATA --best linear.auroc

The figure is a mean over labels, or over both directions of retrieval, on the records of validation. The results of the
probe hold it as `validation_results`. The test split has no part in the choice, so its results hold for an export that
nobody chose by them. The linear probe chooses its settings on validation too, so there its values are a little high for
all exports.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from medjax import files
from medjax.errors import UserError
from medjax.probes import results
from medjax.probes.evaluate import ProbeInputs
from medjax.weights import export

# The figures on validation of the probes of medjax. Accuracies choose their thresholds there, so they are none.
LABELS = ('auroc', 'auprc')
WITHOUT = (
    'few_shot', 'search', 'metadata', 'regression', 'ordinal', 'robustness', 'out_of_distribution', 'shortcut',
    'segmentation', 'segmentation_decoder', 'fine_tune_segmentation', 'localisation', 'graph_cut',
)  # fmt: skip
TRAINING = ('fine_tune', 'lora', 'prompts', 'bias_only', 'bpd')
FIGURES = (
    dict.fromkeys(('knn', 'linear', 'linear_sgd', 'classifier', 'zero_shot', 'concepts', *TRAINING), LABELS)
    | dict(retrieval=('R@1', 'R@5', 'R@10', 'P@5', 'P@10'))
    | dict.fromkeys(WITHOUT, ())
)
KINDS = dict(step=int, probe=str, metric=str, data=str, steps=dict) | dict.fromkeys(
    ('value', 'low', 'high'), (int, float)
)


class Figure(NamedTuple):
    """A metric of a probe."""

    probe: str
    metric: str

    def __str__(self) -> str:
        return f'{self.probe}.{self.metric}'


def parse(text: str, probes: Sequence[str]) -> Figure:
    """The figure that --best names, 'linear.auroc', of one of the probes that run. UserError for any other text."""
    probe, _, metric = text.rpartition('.')
    choices = ', '.join(f'{name}.{figure}' for name in probes for figure in FIGURES.get(name, ('FIGURE',)))
    choices = choices or 'none of the probes that run; add linear'
    if probe not in probes:
        known = f'; the probes that run are {", ".join(probes)}' if probe else ''
        raise UserError(f'--best {text}: write PROBE.FIGURE{known}; figures on validation: {choices}')
    if metric not in FIGURES.get(probe, (metric,)):
        raise UserError(f'--best {text}: {probe} has no figure {metric!r} on validation; such figures: {choices}')
    return Figure(probe, metric)


def choose(run: pathlib.Path, found: Mapping[int, Mapping[str, Any]], figure: Figure) -> dict[str, Any]:
    """Writes RUN/best.json from results of exports by step, and returns its content.

    Of equal exports the earliest is chosen, and never one that is no longer there. UserError where no result has the
    figure.
    """
    if not found:
        raise UserError(f'--best {figure}: no export has a result of {figure.probe} with the options of this command')
    values = {step: one for step, result in sorted(found.items()) if (one := value(result, figure.metric)) is not None}
    if not values:
        has = sorted({name for result in found.values() for name in result.get('validation_results', {})})
        why = f'they have {", ".join(has)}' if has else 'no label has both classes there, or there is no val split'
        raise UserError(f'--best {figure}: the results of the exports do not have this figure on validation: {why}')
    there = [step for step in values if step in export.steps(run)]
    if not there:
        raise UserError(
            f'--best {figure}: the exports with this figure are no longer there: {", ".join(map(str, values))}'
        )
    step = max(there, key=lambda step: (values[step]['value'], -step))
    result = found[step]
    content = dict(
        step=step,
        figure=str(figure),
        probe=figure.probe,
        metric=figure.metric,
        **{key: values[step][key] for key in ('value', 'low', 'high')},
        level=result['bootstrap']['level'],
        data=result['data'],
        data_fingerprint=result['data_fingerprint'],
        labels=_labels(result['validation_results'][figure.metric]),
        left_out=[
            label
            for label in _labels(result['results'].get(figure.metric, {}))
            if label not in result['validation_results'][figure.metric]
        ],
        validation=result['validation'],
        policy=result['policy'],
        steps={str(other): {key: one[key] for key in ('value', 'low', 'high')} for other, one in values.items()},
    )
    with files.writing(f'the choice {run / export.BEST}'):
        files.write_json(run / export.BEST, content)
    return content


def _labels(rows: Mapping[str, Any]) -> list[str]:
    return [row for row in rows if row != 'mean']


def result_of(run: pathlib.Path, inputs: ProbeInputs, figure: Figure) -> dict[str, Any] | None:
    """The result of a probe on an export with these options; None if there is none."""
    probe = results.name(figure.probe, inputs.prompts)
    result = results.of_encoder(run, inputs.encoder.name, inputs.data, probe)
    if result is None or result['encoder']['export_digest'] != inputs.encoder.digest:
        return None
    bootstrap, unit = result.get('bootstrap', {}), result.get('unit', {})
    wanted = dict(seed=inputs.seed, draws=inputs.draws, interval=inputs.interval)
    if result.get('policy') != dict(inputs.policy) or any(bootstrap.get(key) != x for key, x in wanted.items()):
        return None
    if unit.get('unit', inputs.unit) != inputs.unit or unit.get('pool', inputs.pool) != inputs.pool:
        return None
    return result


def value(result: Mapping[str, Any], metric: str) -> Mapping[str, Any] | None:
    """{value, low, high} of the mean over labels on validation; None if the result does not have it."""
    return result.get('validation_results', {}).get(metric, {}).get('mean')


def read(run: pathlib.Path) -> dict[str, Any]:
    """The content of RUN/best.json; {} if there is none. UserError if it is damaged."""
    content = export.read_best(run)
    if content and not all(isinstance(content.get(key), kind) for key, kind in KINDS.items()):
        raise export.damaged_best(run)
    return content


def sentence(best: Mapping[str, Any]) -> str:
    """'step 1000 is the best of 4 exports by linear AUROC on validation of nih, 0.842 [0.830, 0.854]'."""
    count = len(best.get('steps', ()))
    which = f'the best of {count} exports' if count > 1 else 'the best export, the only one that was probed,'
    interval = f'{best["value"]:.3f} [{best["low"]:.3f}, {best["high"]:.3f}]'
    left_out = best.get('left_out')
    without = f'; left out, with one class there: {", ".join(left_out)}' if left_out else ''
    return f'step {best["step"]} is {which} by {title(best)} on validation of {best["data"]}, {interval}{without}'


def title(best: Mapping[str, Any]) -> str:
    """'linear AUROC'."""
    return f'{best["probe"]} {results.METRIC_TITLES.get(best["metric"], best["metric"])}'
