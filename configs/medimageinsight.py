"""MedImageInsight (arXiv 2410.06542): UniCL, a softmax over pairs in which equal labels are positives, over 14 domains.

    medjax train --config configs/medimageinsight.py --data DATA --workdir RUN \\
        --config.views.report.prompts=prompts.json --config.tokenizer.path=clip/tokenizer.json

DATA: images with labels, with texts, or both, public and of partners in theirs; several sources as in unimed_clip.py.
A record without a text is told by its labels (docs/learn_from_reports.md); one without labels is its own positive
alone.

The image tower is a stand-in: theirs is a DaViT (patches of 7, 3, 3, 3 with strides 4, 2, 2, 2; widths 256 to 2,048;
.36 B parameters), whose hierarchical stages do not exist here yet. Here is a plain ViT-L/16 (.3 B) at the same 480
px.

Certain (released configuration of its evaluation, model card): UniCL, 480 px, ImageNet's mean and deviation, drop
path .2, CLIP's tokenizer, linear projections, clipping at 1, a logit-scale parameter that starts at 1; a text tower
of .25 B.
Recalled: that the scale is the exponential of that parameter, so that the temperature starts at 1/e; 77 tokens.

Ours: the text tower's 16 layers of width 1,024, which have .25 B; 1,024 numbers; bfloat16 for float16; batch,
learning rate, steps and decay; crops of .6 to 1. What theirs had and ours has not: DaViT, muP. rows_per_group=5 lets
drop path keep 4 of 5.

Cost: 1.6 TFLOP a pair, 2 PFLOP a step. Published hardware and hours: not found.
Published (abstract): AUROC above .9 in most domains without training on the test's; image-image search over 6 points
of AUROC above other public models.
"""

import math

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        dict(
            total_steps=100_000,
            batch_size=1_280,
            seed=0,
            rows_per_group=5,
            micro_batches=1,
            dtype='bfloat16',
            image=dict(channels=3, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
            data=dict(pairs=dict(sources=dict(main=1.0))),
            views=dict(
                crop=dict(
                    view='crop',
                    part='pairs',
                    count=1,
                    size=480,
                    area=(0.6, 1.0),
                    aspect=(3 / 4, 4 / 3),
                    photometric=None,
                ),
                report=dict(view='text', part='pairs', length=77, count=1, prompts=None),
            ),
            towers=dict(
                image=dict(
                    tower='vit', variant='L/16', family='dinov2', layerscale=None, native_size=480, drop_path=0.2
                ),
                text=dict(tower='text', family='clip', variant='B', width=1_024, depth=16, heads=16),
            ),
            heads=dict(vi=dict(head='linear', out=1_024), vt=dict(head='linear', out=1_024)),
            terms=[
                dict(
                    term='pair_softmax',
                    rows='student/image/crop/cls>vi',
                    columns='student/text/report/cls>vt',
                    positives=['identity', 'label'],
                    temperature=dict(learned=math.exp(-1), low=0.01),
                ),
            ],
            optim=dict(
                lr=2e-4,
                schedule=dict(rule='cosine', start=1.0, end=0.0, warmup=2_000),
                weight_decay=0.1,
                b1=0.9,
                b2=0.98,
                clip=1.0,
                groups=[
                    dict(match='terms/*', wd_scale=0.0),
                ],
            ),
            init_from=None,
            export=dict(network='student', towers=['image', 'text'], heads=['vi', 'vt'], every=5_000),
            checkpoint=dict(every=1_000, keep=2),
            log=dict(every=50),
        )
    )
