"""MedImageInsight (arXiv 2410.06542): contrast in which equal labels are positives (UniCL), over 14 domains.

    medjax train --config medimageinsight --data DATA --workdir RUN \\
        --config.views.report.prompts=prompts.json --config.tokenizer.path=clip/tokenizer.json

DATA holds images with labels, with texts, or with both. The authors used public sets and sets of partners. Several
sources are written as in unimed_clip.py. A record without a text gets sentences from its labels
(docs/learn_from_reports.md). A record without labels has only itself as a positive.

The image tower is a stand-in. The authors use a DaViT: patches of 7, 3, 3 and 3 px with strides 4, 2, 2 and 2, widths
256 to 2,048, .36 B parameters. Such towers with stages are not available here. This recipe has a plain ViT-L/16 (.3 B)
at the same 480 px.

Certain (released configuration of the evaluation, model card): UniCL; 480 px; mean and deviation of ImageNet; drop path
.2; CLIP's tokenizer; linear projections; gradients clipped at 1; a logit-scale parameter that starts at 1; a text tower
with .25 B parameters.
Recalled: the scale is the exponential of that parameter, so the temperature starts at 1/e; 77 tokens.
Ours: 16 layers of width 1,024 in the text tower, which have .25 B parameters; embeddings of 1,024 numbers; bfloat16
for float16; batch, learning rate, steps and decay; crops of area .6 to 1. With rows_per_group=5, drop path keeps 4 of
5 crops.
Not here: DaViT and muP.

Cost: 1.6 TFLOP a pair, 2 PFLOP a step. Published hardware and hours were not found.
Published (abstract): AUROC above .9 in most domains without training on the data of the test; image-image search is
over 6 points of AUROC better than with other public models.
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
