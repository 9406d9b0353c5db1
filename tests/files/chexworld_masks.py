"""Makes chexworld_masks.npz: statistics of the blocks that the original code of CheXWorld draws, before it cuts them.

    python tests/files/chexworld_masks.py CHECKOUT/masks/multi_multiblock.py

CHECKOUT is LeapLabTHU/CheXWorld at 0901027. The settings are the published ones on 14 x 14 patches: 300 batches of 8
images, seed 0. The collator draws the targets of an image, then its context; each draw is noted as it leaves
`_sample_block_mask`.

    target_hw, context_hw   int [300,2], height and width of the blocks of a batch
    context_length, union   int [2400], patches of a context without its targets, and of all targets together
    context_cells, target_cells  float [14,14], how often a patch is in a context, and in a target block
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

BATCHES, BATCH, SIDE, TARGETS = 300, 8, 14, 4


def draws(path: str) -> list[tuple[tuple[int, int], np.ndarray]]:
    """Size and patches of every block, in the order of the draws: four targets and a context of each image."""
    spec = importlib.util.spec_from_file_location('original', path)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    collator = module.MaskCollator(
        input_size=(SIDE * 16, SIDE * 16), patch_size=16, enc_mask_scale=(0.75, 1.0), pred_mask_scale=(0.15, 0.2),
        aspect_ratio=(0.75, 1.5), nenc=1, npred=TARGETS, min_keep=10, merge=True,
    )  # fmt: skip
    original, found = collator._sample_block_mask, []

    def noting(size: tuple[int, int], acceptable_regions: Any = None) -> Any:
        mask, complement = original(size, acceptable_regions)
        found.append((size, mask.numpy().copy()))
        return mask, complement

    collator._sample_block_mask = noting
    torch.manual_seed(0)
    for _ in range(BATCHES):
        collator([torch.zeros(1)] * BATCH)
    return found


def statistics(found: list[tuple[tuple[int, int], np.ndarray]]) -> dict[str, np.ndarray]:
    images = [found[i : i + TARGETS + 1] for i in range(0, len(found), TARGETS + 1)]
    targets, contexts = [image[:-1] for image in images], [image[-1] for image in images]

    def cells(blocks: list[np.ndarray]) -> np.ndarray:
        return np.bincount(np.concatenate(blocks), minlength=SIDE**2).reshape(SIDE, SIDE) / len(blocks)

    return dict(
        target_hw=np.array([image[0][0] for image in targets[::BATCH]], np.int8),
        context_hw=np.array([size for size, _ in contexts[::BATCH]], np.int8),
        context_length=np.array([len(patches) for _, patches in contexts], np.uint8),
        union=np.array([len(np.unique(np.concatenate([x for _, x in image]))) for image in targets], np.uint8),
        context_cells=cells([patches for _, patches in contexts]),
        target_cells=cells([patches for image in targets for _, patches in image]),
    )


if __name__ == '__main__':
    np.savez_compressed(Path(__file__).with_suffix('.npz'), **statistics(draws(sys.argv[1])))  # type: ignore[arg-type]
