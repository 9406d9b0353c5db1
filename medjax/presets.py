"""Sizes that recipes share.

For recipes that continue a public ViT-B, presets by batch size: one GPU, a node of 8 GPUs, a pod of 64.

    preset = presets.find(name)          # in get_config(name) of a recipe, for `--config continue_heads_first:node`
    dict(lr=preset.lr, …)

For recipes that tune an encoder on labels, a length in passes over the train split.

    steps = presets.steps(data, epochs, batch)           # in get_config(data, epochs), for `--config fine_tune:20`

What depends on the batch and on the memory of a device stands here, with its reason. The method stands in the recipe.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from medjax.errors import UserError

# Images after which a teacher has forgotten half of an older student. Published twice: DINOv2's long recipe has
# momentum .994 with 3,072 images a step (354,000 images), and DINO's code advises .9995 with 256 (355,000). For other
# batches the number of images stays (the EMA scaling rule, arXiv 2307.13813), not the momentum.
HALF_LIFE = 354_000


class Preset(NamedTuple):
    """Sizes of a run. Batches: ours for `gpu` and `node`; RAD-DINO's (64 GPUs x 40 images) for `pod`."""

    batch_size: int
    # Ours: 2.6 million images on one GPU are 23 passes over NIH-CXR's 112,000; 20 million on a node are 23 passes over
    # RAD-DINO's 880,000, and 90 million on a pod are 100.
    steps: int
    # RAD-DINO has 65,536 for its 2,560 images, 26 an image. Smaller batches keep about this ratio (ours: 32), so that a
    # prototype still meets an image every few steps.
    prototypes: int
    # Micro-batches at 224 px and at 518 px, so that a device computes 40 images at most at 518 px and 128 at 224 px:
    # both take less than 40 GiB with a ViT-B/14.
    micro_batches: int
    micro_batches_518: int

    @property
    def lr(self) -> float:
        """Half of DINOv2's 2e-4 sqrt(batch / 1024).

        The square-root rule and 2e-4 are those of DINOv2's long recipe. The half is ours: the weights are good already,
        and another continued run reports collapse from 3.5e-4 on.
        """
        return 2e-4 * (self.batch_size / 1_024) ** 0.5 / 2

    def momentum(self, half_life: float = HALF_LIFE) -> float:
        """The momentum of a teacher that forgets half of an older student in `half_life` images."""
        return float(0.5 ** (self.batch_size / half_life))


PRESETS = dict(
    gpu=Preset(batch_size=256, steps=10_000, prototypes=8_192, micro_batches=2, micro_batches_518=8),
    node=Preset(batch_size=1_024, steps=20_000, prototypes=32_768, micro_batches=1, micro_batches_518=4),
    pod=Preset(batch_size=2_560, steps=35_000, prototypes=65_536, micro_batches=1, micro_batches_518=1),
)


def find(name: str) -> Preset:
    """The preset of a name; UserError for another one."""
    if name not in PRESETS:
        raise UserError(
            f'there is no preset {name!r}; write gpu (one GPU), node (8 GPUs) or pod (64 GPUs) behind the colon'
        )
    return PRESETS[name]


RECORDS = 10_000  # of the train split that `steps` assumes where no data are at hand


def steps(data: Any, epochs: str, batch: int) -> int:
    """The steps of some passes over the train split of `data`, a DataSet or None. UserError for no whole number."""
    if not epochs.isdecimal() or int(epochs) < 1:
        raise UserError(f'{epochs!r} is no number of epochs; write a whole number behind the colon, as fine_tune:20')
    records = RECORDS if data is None else data.splits.get('train', 0)
    return max(-(-int(epochs) * records // batch), 1)
