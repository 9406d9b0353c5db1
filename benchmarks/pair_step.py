"""Times a contrastive training step against open_clip's: ViT-B/16 and BERT-base, softmax, AdamW, float32.

    pip install --no-deps --target DIR open_clip_torch timm ftfy wcwidth
    python benchmarks/pair_step.py --open-clip DIR [--batch 16] [--length 77] [--cores 1] [--remat none] [--small]

A step is forward, loss, backward and AdamW without clipping, on random images and on texts of random lengths. Each
side runs in a process of its own, so its peak memory is measured alone. The sides step in turn, so a busy machine
slows both. It does not slow them equally: threads that wait for each other lose most. On a busy machine use --cores 1
and look at the seconds of processor time, which do not include waiting for a core.

open_clip's side uses open_clip's own code: CustomTextCLIP with VisionTransformer and HFTextEncoder around transformers'
BERT (random weights; no dropout, because medjax has none), ClipLoss, and AdamW with the groups of open_clip_train.
medjax's side is a recipe and the step that `medjax train` runs. The FLOPs of both are counted, to show that both do the
same work. tests/weights/test_huggingface.py compares the outputs of the towers, tests/objectives/test_pair_losses.py
the losses.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIDES = ('medjax', 'open_clip')
FULL = dict(width=768, depth=12, heads=12, vocabulary=30_522)
SMALL = dict(width=192, depth=4, heads=3, vocabulary=2_000)
EMBED, PATCH = 512, 16
OPTIM = dict(lr=1e-4, b1=0.9, b2=0.98, eps=1e-6)
DECAY = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--open-clip', help="the folder that pip's --target filled; without it medjax alone is timed")
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--size', type=int, default=224, help='side of the images, in pixels')
    parser.add_argument('--length', type=int, default=77, help='tokens of the longest text')
    parser.add_argument('--steps', type=int, default=6, help='timed steps of each side')
    parser.add_argument('--warmup', type=int, default=2)
    parser.add_argument('--cores', type=int, default=len(os.sched_getaffinity(0)), help='cores that both sides share')
    parser.add_argument(
        '--remat', default='products', help="what medjax's towers store for the backward pass, a key of layers.REMAT"
    )
    parser.add_argument('--small', action='store_true', help='a quick look: width 192, depth 4, a vocabulary of 2,000')
    parser.add_argument('--json', action='store_true', help='one JSON line instead of a table')
    parser.add_argument('--side', choices=SIDES, help=argparse.SUPPRESS)  # set for child processes
    args = parser.parse_args()
    if args.side:
        serve(args)
        return
    result = measure(args)
    print(json.dumps(result) if args.json else table(result))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs both sides, one step of each in turn."""
    children = {}
    for side in SIDES if args.open_clip else SIDES[:1]:
        command = [sys.executable, __file__, *sys.argv[1:], '--side', side]
        children[side] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(side: str) -> dict[str, Any]:
        children[side].stdin.write('\n')
        children[side].stdin.flush()
        answer = children[side].stdout.readline()
        if not answer:
            raise SystemExit(f'the process of {side} ended; its output is above')
        return json.loads(answer)

    facts = {side: ask(side) for side in children}  # one after the other, so that compiling slows no step
    answers: dict[str, list[dict]] = {side: [] for side in children}
    for _ in range(args.warmup + args.steps):
        for side in children:
            answers[side].append(ask(side))
    result: dict[str, Any] = dict(batch=args.batch, size=args.size, length=args.length, small=args.small)
    for side, child in children.items():
        child.stdin.close()
        child.wait()
        timed = answers[side][args.warmup :]
        seconds = [answer['seconds'] for answer in timed]
        median = statistics.median(seconds)
        result[side] = dict(
            facts[side],
            seconds=median,
            cpu_seconds=statistics.median(answer['cpu_seconds'] for answer in timed),
            seconds_min=min(seconds),
            seconds_max=max(seconds),
            images_per_s=args.batch / median,
            first_loss=answers[side][0]['loss'],
            last_loss=answers[side][-1]['loss'],
            peak_memory_mib=answers[side][-1]['peak_memory_mib'],
        )
    if args.open_clip:
        for kind in ('seconds', 'cpu_seconds'):
            steps = zip(*(answers[side][args.warmup :] for side in SIDES))
            result[f'ratio_{kind}'] = statistics.median(open_clip[kind] / medjax[kind] for medjax, open_clip in steps)
    return result


def serve(args: argparse.Namespace) -> None:
    """A child process: prepares at the first line of its input, then runs one step for each line."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])  # before any thread is started
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # other output goes to stderr
    start, step = medjax_step if args.side == 'medjax' else open_clip_step, None
    for _ in sys.stdin:
        began, worked = time.perf_counter(), time.process_time()
        if step is None:
            step, answer = start(args, SMALL if args.small else FULL, *inputs(args))
            answer['ready_s'] = time.perf_counter() - began
        else:
            loss = step()
            answer = dict(seconds=time.perf_counter() - began, cpu_seconds=time.process_time() - worked, loss=loss)
            answer['peak_memory_mib'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(json.dumps(answer), file=answers, flush=True)


def inputs(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images [B,H,W,3]; token ids [B,T], 0 after the end of a text; lengths [B]."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(args.batch, args.size, args.size, 3)).astype(np.float32)
    lengths = rng.integers(args.length // 4, args.length + 1, args.batch)
    lengths[0] = args.length
    ids = rng.integers(1, (SMALL if args.small else FULL)['vocabulary'], (args.batch, args.length))
    return images, np.where(np.arange(args.length) < lengths[:, None], ids, 0).astype(np.int32), lengths


def recipe(args: argparse.Namespace, shape: dict[str, int]) -> dict[str, Any]:
    towers = dict(width=shape['width'], depth=shape['depth'], heads=shape['heads'], remat=args.remat)
    return dict(
        total_steps=1_000,
        rows_per_group=1,
        dtype='float32',
        image=dict(channels=3),
        views=dict(
            crop=dict(view='crop', part='pairs', size=args.size),
            report=dict(view='text', part='pairs', length=args.length),
        ),
        masks={},
        towers=dict(
            image=dict(
                tower='vit', family='clip', variant=f'B/{PATCH}', activation='gelu', native_size=args.size, **towers
            ),
            text=dict(tower='text', family='bert', vocabulary=shape['vocabulary'], **towers),
        ),
        heads=dict(image=dict(head='linear', out=EMBED), text=dict(head='linear', out=EMBED)),
        teachers={},
        terms=[
            dict(
                term='pair_softmax',
                rows='student/image/crop/cls>image',
                columns='student/text/report/cls>text',
                temperature=dict(learned=0.07),
            )
        ],
        optim=dict(weight_decay=DECAY, **OPTIM),
    )


def medjax_step(args, shape, images, ids, lengths) -> tuple[Callable[[], float], dict[str, Any]]:
    import jax
    import jax.numpy as jnp

    from medjax.objectives.compose import compose
    from medjax.parallel import sharding
    from medjax.training.flops import step_flops
    from medjax.training.state import create, make_optimizer
    from medjax.training.step import make_step
    from medjax.types import View

    config = recipe(args, shape)
    jax.set_mesh(sharding.make_mesh())
    objective = compose(config)
    optim = make_optimizer(objective, config['optim'], config['total_steps'])
    step = make_step(objective, optim, lambda batch, key, step: batch)
    state = jax.jit(lambda key: create(objective, optim, key))(jax.random.key(0))
    row, present = np.arange(args.batch, dtype=np.uint32), np.ones((args.batch, 1), bool)
    valid = np.arange(args.length) < lengths[:, None]
    views = jax.device_put(
        dict(
            crop=View(images[:, None, None], row, present, None, {}),
            report=View(ids[:, None], row, present, valid[:, None], {}),
        )
    )
    flops = step_flops(objective, lambda batch, key, step: (batch, {}), state, views)
    program = jax.jit(step.step_on_views, donate_argnums=0).lower(state, views, {}).compile()
    memory = program.memory_analysis()

    def once() -> float:
        nonlocal state
        state, metrics = program(state, views, {})
        jax.block_until_ready(state)
        return float(metrics['loss'])

    return once, dict(
        version=jax.__version__,
        device=f'{jax.device_count()} x {jax.devices()[0].device_kind}',
        parameters=sum(jnp.size(x) for x in jax.tree.leaves(state.params)),
        gflop=flops / 1e9,
        temporary_memory_mib=memory.temp_size_in_bytes / 2**20,
    )


def open_clip_step(args, shape, images, ids, lengths) -> tuple[Callable[[], float], dict[str, Any]]:
    import torch
    import transformers
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    open_clip = import_open_clip(args.open_clip)
    torch.set_num_threads(args.cores)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:  # a model's name that needs no network
        transformers.BertConfig(
            vocab_size=shape['vocabulary'],
            hidden_size=shape['width'],
            num_hidden_layers=shape['depth'],
            num_attention_heads=shape['heads'],
            intermediate_size=4 * shape['width'],
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ).save_pretrained(folder)
        model = open_clip.CustomTextCLIP(
            EMBED,
            open_clip.CLIPVisionCfg(
                layers=shape['depth'],
                width=shape['width'],
                head_width=shape['width'] // shape['heads'],
                patch_size=PATCH,
                image_size=args.size,
            ),
            open_clip.CLIPTextCfg(
                hf_model_name=folder,
                hf_model_pretrained=False,
                hf_proj_type='linear',
                hf_pooler_type='cls_last_hidden_state_pooler',
            ),
        )
    model.train()
    # the groups of open_clip_train/main.py
    without_decay = lambda n, p: p.ndim < 2 or 'bn' in n or 'ln' in n or 'bias' in n or 'logit_scale' in n  # noqa: E731
    named = list(model.named_parameters())
    optim = torch.optim.AdamW(
        [
            {'params': [p for n, p in named if without_decay(n, p)], 'weight_decay': 0.0},
            {'params': [p for n, p in named if not without_decay(n, p)], 'weight_decay': DECAY},
        ],
        lr=OPTIM['lr'],
        betas=(OPTIM['b1'], OPTIM['b2']),
        eps=OPTIM['eps'],
    )
    criterion = open_clip.ClipLoss()
    pictures = torch.tensor(images).permute(0, 3, 1, 2).contiguous()
    tokens = torch.tensor(ids, dtype=torch.long)

    def loss_and_gradients() -> torch.Tensor:
        optim.zero_grad()
        image, text, scale = model(pictures, tokens)
        loss = criterion(image, text, scale)
        loss.backward()
        return loss

    def once() -> float:
        loss = loss_and_gradients()
        optim.step()
        return loss.item()

    # the counter does not count the CPU's flash attention, so the plain attention is counted
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss_and_gradients()
    return once, dict(
        version=f'{open_clip.__version__}, torch {torch.__version__}',
        device=f'{torch.get_num_threads()} threads',
        parameters=sum(p.numel() for _, p in named),
        gflop=counter.get_total_flops() / 1e9,
    )


def import_open_clip(folder: str) -> Any:
    """Imports open_clip from `folder`.

    If torchvision cannot be imported (its wheels for Linux are built for CUDA), open_clip and timm get empty modules
    instead. They need torchvision for transforms of images, which are not timed.
    """
    from unittest import mock

    from transformers import BertModel  # noqa: F401  first: transformers looks for torchvision

    sys.path.insert(0, str(Path(folder).resolve()))
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in ('', '.transforms', '.transforms.functional', '.ops', '.ops.misc', '.datasets'):
            sys.modules[f'torchvision{name}'] = mock.MagicMock()
    import open_clip

    return open_clip


def table(result: dict[str, Any]) -> str:
    lines = [
        f'{result["batch"]} pairs of a {result["size"]} px image and at most {result["length"]} tokens, float32',
        '',
        '| side | M parameters | GFLOP | s a step (median, min, max) | CPU s | images/s | peak MiB | losses |',
        '| --- | --- | --- | --- | --- | --- | --- | --- |',
    ]
    for side in (side for side in SIDES if side in result):
        r = result[side]
        spread = f'{r["seconds"]:.3f} ({r["seconds_min"]:.3f}, {r["seconds_max"]:.3f})'
        lines.append(
            f'| {side} {r["version"]}, {r["device"]} | {r["parameters"] / 1e6:.1f} | {r["gflop"]:.0f} | {spread} | '
            f'{r["cpu_seconds"]:.2f} | {r["images_per_s"]:.2f} | {r["peak_memory_mib"]:.0f} | '
            f'{r["first_loss"]:.3f}, {r["last_loss"]:.3f} |'
        )
    if 'ratio_seconds' in result:
        ratio = f'{result["ratio_seconds"]:.2f} times the images/s of open_clip (median over pairs of steps)'
        lines += ['', f'{ratio}, {result["ratio_cpu_seconds"]:.2f} times by processor time']
    return '\n'.join(lines)


if __name__ == '__main__':
    main()
