"""All layouts of published files that medjax reads and writes, one module a family."""

from medjax.weights.families import convnext, dino_head, resnet, text, vit
from medjax.weights.layout import Layout

LAYOUTS: tuple[Layout, ...] = (*vit.LAYOUTS, *text.LAYOUTS, *resnet.LAYOUTS, *convnext.LAYOUTS, *dino_head.LAYOUTS)
