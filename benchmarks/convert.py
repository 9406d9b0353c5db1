"""Memory and seconds of `medjax convert` for a large backbone: public names -> export -> Hugging Face.

    python benchmarks/convert.py                # ViT-L, 300 million parameters
    python benchmarks/convert.py --size g       # ViT-g/14 of DINOv2, 1,100 million parameters; needs 10 GB of disk

Draws a backbone in Meta's names, as .safetensors, and as .pth where torch is installed. Each conversion is a process of
its own; printed is its largest memory as a multiple of the file. A process that imports the same modules and converts a
tiny backbone is measured too: its memory is subtracted in the last column.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from medjax.models.layers import SIZES
from medjax.models.towers.vit import swiglu_hidden

LAYOUTS = {'L': ('L', 4096), 'g': ('g', 4096), 'tiny': ('Ti', 768)}


def backbone(size: str) -> dict[str, np.ndarray]:
    """Arrays of a DINOv2 backbone in Meta's names."""
    shape = SIZES[LAYOUTS[size][0]]
    d, depth = shape['width'], shape['depth'] if size != 'tiny' else 1
    hidden = round(d * shape['mlp_ratio'])
    rng = np.random.default_rng(0)

    def draw(*sizes: int) -> np.ndarray:
        return rng.standard_normal(sizes, np.float32)

    state = dict(cls_token=draw(1, 1, d), mask_token=draw(1, d), pos_embed=draw(1, 1 + 37 * 37, d))
    state |= {'patch_embed.proj.weight': draw(d, 3, 14, 14), 'patch_embed.proj.bias': draw(d)}
    state |= {'norm.weight': draw(d), 'norm.bias': draw(d)}
    for i in range(depth):
        at = f'blocks.{i}.'
        state |= {f'{at}{norm}.{kind}': draw(d) for norm in ('norm1', 'norm2') for kind in ('weight', 'bias')}
        state |= {f'{at}attn.qkv.weight': draw(3 * d, d), f'{at}attn.qkv.bias': draw(3 * d)}
        state |= {f'{at}attn.proj.weight': draw(d, d), f'{at}attn.proj.bias': draw(d)}
        state |= {f'{at}ls1.gamma': draw(d), f'{at}ls2.gamma': draw(d)}
        inner = swiglu_hidden(hidden) if shape['ffn'] == 'swiglu' else hidden
        first, second = ('w12', 'w3') if shape['ffn'] == 'swiglu' else ('fc1', 'fc2')
        outer = 2 * inner if shape['ffn'] == 'swiglu' else inner
        state |= {f'{at}mlp.{first}.weight': draw(outer, d), f'{at}mlp.{first}.bias': draw(outer)}
        state |= {f'{at}mlp.{second}.weight': draw(d, inner), f'{at}mlp.{second}.bias': draw(d)}
    return state


def converted(*arguments: str) -> tuple[float, float]:
    """Seconds and the largest memory in bytes of `medjax convert`."""
    code = 'import sys; from medjax.cli import main; sys.exit(main(["convert", *sys.argv[1:]]))'
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, '-c', code, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f'medjax convert {" ".join(arguments)} failed')
    return time.perf_counter() - begun, usage.ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', choices=('L', 'g'), default='L')
    parser.add_argument('--folder', type=Path, help='where the files are made (default: a temporary folder)')
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory(dir=args.folder) as made:
        folder = Path(made)
        save_file(backbone('tiny'), folder / 'tiny.safetensors')
        _, base = converted(str(folder / 'tiny.safetensors'), '--out', str(folder / 'tiny'))
        child = os.fork()  # the drawn arrays leave memory with the child
        if child == 0:
            save_file(backbone(args.size), folder / 'large.safetensors')
            os._exit(0)
        os.waitpid(child, 0)
        size = (folder / 'large.safetensors').stat().st_size
        print(f'ViT-{args.size}: {size / 1e9:.2f} GB; a tiny backbone takes {base / 1e9:.2f} GB of memory')
        steps = [('Meta -> export', ['large.safetensors'], 'export', None)]
        try:
            import torch

            child = os.fork()
            if child == 0:
                from safetensors.torch import load_file

                torch.save(load_file(folder / 'large.safetensors'), folder / 'large.pth')
                os._exit(0)
            os.waitpid(child, 0)
            steps.append(('Meta, .pth -> export', ['large.pth'], 'export-pth', None))
        except ImportError:
            pass
        steps.append(('export -> Hugging Face', ['export'], 'hf', 'huggingface'))
        steps.append(('Hugging Face -> export', ['hf'], 'again', None))
        steps.append(('export -> program', ['export'], 'program', 'stablehlo'))
        for title, (source,), target, layout in steps:
            extra = ['--to', layout] if layout else []
            seconds, memory = converted(str(folder / source), '--out', str(folder / target), *extra)
            print(
                f'{title:24} {seconds:6.1f} s, {memory / 1e9:6.2f} GB, {memory / size:.2f} times the file; '
                f'{(memory - base) / size:.2f} without the program itself',
                flush=True,
            )


if __name__ == '__main__':
    main()
