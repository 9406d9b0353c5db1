"""The folder of a run as training and probes leave it, with invented numbers."""

import json
import math

import numpy as np

LABELS = ('nodule', 'effusion', '<b>R&D</b> $x$')
LN_K = math.log(4096)


def make_run(place):
    """A run with every file but data and exports."""
    folder = place / 'a run <1>'
    folder.mkdir()
    (folder / 'config.json').write_text(json.dumps(config()))
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines()) + '{"step": 2')
    verdict = {
        'step': 2000,
        'status': 'learning',
        'since': None,
        'verdict': 'Learning: cls loss 6.02 of 8.32 for a constant answer.',
    }
    (folder / 'health.json').write_text(json.dumps(verdict))
    for i, encoder in enumerate((500, 1000, 2000, 'random', 'pixels')):
        for probe in ('knn', 'linear'):
            write_result(folder, encoder, probe, skill=(0.3, 0.8, 1.2, 0.0, 0.5)[i])
    return folder


def config():
    return {
        'total_steps': 2000,
        'batch_size': 32,
        'seed': 0,
        'data': {'cxr': {'rows': 32, 'sources': {'main': 1.0}}},
        'data_paths': {'main': '/nowhere/phantom'},
        'views': {
            'global': {'view': 'crop', 'count': 2, 'size': 64},
            'local': {'view': 'crop', 'count': 4, 'size': 32},
        },
        'towers': {'image': {'tower': 'vit', 'variant': 'S/8'}},
        'heads': {'dino': {'head': 'dino_head', 'prototypes': 4096}},
        'terms': [
            {'term': 'distill_cls', 'name': 'cls'},
            {'term': 'distill_patch', 'name': 'patch'},
            {'term': 'koleo', 'weight': 0.1},
        ],
        'optim': {'lr': 1e-3},
    }


def lines(n=40):
    noise = np.random.default_rng(0).normal(0, 0.05, (n, 3))
    for i in range(n):
        x = (i + 1) / n
        yield {
            'step': 50 * (i + 1),
            'time': 1.7e9 + i,
            'images_per_s': 50 + noise[i, 0],
            'mfu': 0.31,
            'lr': 1e-3 * min(1, 5 * x) * (1.1 - x),
            'weight_decay': 0.04 + 0.36 * x,
            'momentum': 0.992 + 0.008 * x,
            'loss': None if i == 7 else 14 - 4 * x + noise[i, 1],
            'term/cls/loss': LN_K * (1.01 - 0.28 * x) + noise[i, 0],
            'term/cls/loss/image/global~block': LN_K * (1.01 - 0.28 * x) * 2 / 18,
            'term/cls/loss/image/local': LN_K * (1.01 - 0.28 * x) * 16 / 18,
            'term/cls/start': LN_K,
            'term/cls/entropy': LN_K - 1 - 2 * x,
            'term/cls/entropy_max': LN_K,
            'term/cls/prototypes': 20 + 30 * x,
            'term/cls/prototypes_max': 640,
            'term/patch/loss': LN_K / 2 * (1.01 - 0.1 * x) + noise[i, 2],
            'term/patch/start': LN_K / 2,
            'term/koleo/loss': 0.4 - x,
            'rank/student/image/global~block/cls': 3 + 20 * x,
            'rank_max/student/image/global~block/cls': 63,
            'grad_norm/backbone': 2 - x + noise[i, 1],
            'skipped': 1 if i > 20 else 0,
        }


def write_result(folder, encoder, probe, skill, data='phantom', n=300, labels=LABELS):
    rng = np.random.default_rng(5)
    truth = (rng.random((n, len(labels))) < 0.25).astype(np.int8)
    truth[:10, 0] = -1
    scores = (truth * skill + rng.normal(0, 1, truth.shape)).astype(np.float32)
    value = 0.5 + 0.25 * skill

    def around(v, **more):
        return {'value': v, 'low': v - 0.03, 'high': v + 0.03, **more}

    def figure(v):
        each = {name: around(v - 0.01 * i, positives=60 + i, negatives=1200 - i) for i, name in enumerate(labels)}
        return {'mean': around(v, labels=len(labels))} | each

    seen = {'patient': 0.0, 'image': 0.0, 'pixels': 0.125, 'comparable': True}
    body = {
        'probe': probe,
        'data': data,
        'data_fingerprint': 'f00',
        'encoder': {'step': encoder, 'export_digest': None},
        'split': 'test',
        'records': {'train': 1000, 'val': 200, 'test': n},
        'seed': 0,
        'chosen': {'k': 20} if probe == 'knn' else {'layers': 4, 'l2': 0.01},
        'results': {'auroc': figure(value), 'auprc': figure(value - 0.3), 'accuracy': figure(value)},
        'skipped_labels': {'hernia': 'no positive in val'},
        'bootstrap': {'unit': 'patient', 'patients': 250, 'draws': 1000, 'level': 0.95},
        'overlap': seen if isinstance(encoder, int) else {},
        'scores': f'{data}.{probe}.npz',
    }
    target = folder / 'probes' / str(encoder)
    target.mkdir(parents=True, exist_ok=True)
    (target / f'{data}.{probe}.json').write_text(json.dumps(body))
    np.savez(target / f'{data}.{probe}.npz', scores=scores, labels=truth, names=np.array(labels), patient=np.arange(n))
