"""Models that are near the known families and are not read: what they are, and what to take in their place.

Their names are partly those of a known family. Without this list a user would be told about arrays, and not about the
model.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from medjax.weights.arrays import Arrays
from medjax.weights.families.vit import fixed_positions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Other:
    """A kind of models that is not read.

    title    for messages: 'a Swin transformer'
    has      patterns of names; each stands at the end of some name of the file, whatever prefix is before
    lacks    patterns of names that the file has not
    when     whether arrays with these names are of this kind, where shapes decide it
    instead  what would work
    """

    title: str
    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    when: Callable[[Arrays], bool] = lambda arrays: True
    instead: str

    def matches(self, arrays: Arrays) -> bool:
        there = [any(_is(pattern, name) for name in arrays) for pattern in (*self.has, *self.lacks)]
        return all(there[: len(self.has)]) and not any(there[len(self.has) :]) and self.when(arrays)


def _is(pattern: str, name: str) -> bool:
    return re.fullmatch(rf'(?:.*\.)?(?:{pattern})', name) is not None


def _shape(arrays: Arrays, pattern: str) -> tuple[int, ...]:
    return next(arrays.shape(name) for name in arrays if _is(pattern, name))


def flat_patches(arrays: Arrays) -> bool:
    """Whether the patch embedding is a Linear of flattened patches."""
    return len(_shape(arrays, PATCHES)) == 2


def of_convolutions(arrays: Arrays) -> bool:
    """Whether the products in the blocks of a ConvNeXt are stored as convolutions of 1 x 1."""
    return len(_shape(arrays, r'stages\.0\.blocks\.0\.mlp\.fc1\.weight')) == 4


def of_other_width(arrays: Arrays) -> bool:
    """Whether the first block of a ResNet is not as wide as its stem, or has groups."""
    stem, second = _shape(arrays, STEM), _shape(arrays, SECOND)
    return len(stem) == 4 and len(second) == 4 and not stem[0] == second[0] == second[1]


def without_fixed_positions(arrays: Arrays) -> bool:
    """Whether a ViT is none of I-JEPA's, whose positions are fixed."""
    return not any(fixed_positions(arrays, name) for name in arrays if _is('pos_embed', name))


VITS = 'models of timm that are read have a CLS token and `norm`, such as vit_base_patch16_224'
RESNETS = 'plain ResNets are read, such as resnet50 of torchvision or timm'
CONVNEXTS = 'ConvNeXts of torchvision, timm or SparK are read, such as convnext_tiny'
PATCHES = r'(?:embeddings\.patch_embedding|embeds\.proj)\.weight'
STEM = r'(?:(?<!\d\.)conv1|embedder\.embedder\.convolution)\.weight'
SECOND = r'(?:layer1\.0\.conv2|encoder\.stages\.0\.layers\.0\.layer\.1\.convolution)\.weight'
NOT_READ = (
    Other(title='SigLIP 2 of free resolution (NaFlex), or a model like it', has=(PATCHES,), when=flat_patches,
          instead='SigLIP and SigLIP 2 of one resolution are read, such as siglip2-base-patch16-224'),
    Other(title='an EVA model', has=(r'blocks\.0\.attn\.(?:q_bias|q_proj\.weight)', 'pos_embed'),
          instead='ViT, DINOv2, DINOv3, CLIP and SigLIP of timm are read'),
    Other(title='a BEiT, or a model with its names (Data2Vec of images, InternVL)',
          has=(r'relative_position_bias(?:\.relative_position_bias)?_table|lambda_1|attn\.relative_position_bias_table',),
          lacks=(r'(?:layers\.0\.blocks|features\.1)\.0\..*',), instead='ViT and DINOv2 are read'),
    Other(title='a Swin transformer (attention in windows)',
          has=(r'(?:layers\.0\.blocks|features\.1)\.0\..*relative_position_bias_table',),
          instead='ViT, DINOv2 and plain ResNets are read'),
    Other(title='a ConvNeXt V2', has=(r'stages\.0\.(?:(?:blocks|layers)\.)?0\.(?:mlp\.)?grn\..*',), instead=CONVNEXTS),
    Other(title="a ConvNeXt in transformers' names",
          has=(r'stages\.0\.layers\.0\.(?:dwconv|depthwise_conv)\.weight',), instead=CONVNEXTS),
    Other(title='a ConvNeXt of timm whose products are convolutions (Atto to Nano)',
          has=(r'stages\.0\.blocks\.0\.mlp\.fc1\.weight',), when=of_convolutions, instead=CONVNEXTS),
    Other(title='a DeiT with a distillation token', has=(r'(?:embeddings\.distillation_token|dist_token)',),
          instead='DeiT without distillation is read, such as deit_base_patch16_224 of timm'),
    Other(title='a ViT of timm that pools its patches before the last norm (fc_norm)',
          has=(r'blocks\.0\.attn\.qkv\.weight', r'fc_norm\.weight'), lacks=(r'norm\.weight',), instead=VITS),
    Other(title='a ViT of timm without a CLS token',
          has=(r'blocks\.0\.attn\.qkv\.weight', r'patch_embed\.proj\.weight'),
          lacks=('cls_token', 'mask_token', r'attn_pool\.latent', r'layers\.0\..*'), when=without_fixed_positions,
          instead=VITS),
    Other(title='a ResNet with another stem (ResNet-C or ResNet-D)',
          has=(r'conv1\.0\.weight', r'layer1\.0\.conv1\.weight'), instead=RESNETS),
    Other(title='a ResNet whose blocks have another width or groups (Wide-ResNet, ResNeXt)',
          has=(STEM, SECOND), when=of_other_width, instead=RESNETS),
    Other(title='a DistilBERT', has=(r'transformer\.layer\.0\.attention\.q_lin\.weight',),
          instead='BERT is read, and models that differ from it in vocabulary and weights only'),
)  # fmt: skip


def which(arrays: Arrays) -> Other | None:
    """The kind of models that these arrays are, if it is one that is not read."""
    return next((other for other in NOT_READ if other.matches(arrays)), None)
