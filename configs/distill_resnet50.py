"""A ResNet-50 that learns the features of a public ViT-B/14: RAD-DINO (arXiv 2401.10815) or DINOv2 (2304.07193).

    medjax train --config distill_resnet50:rad-dino.safetensors --data DATA --workdir RUN
    medjax train --config distill_resnet50:dinov2_vitb14.safetensors --data DATA --workdir RUN \\
        --config.image.mean='[.485, .456, .406]' --config.image.std='[.229, .224, .225]'

The text behind the colon is the path of the teacher's weights. The teacher `public` is frozen: it has no gradient and
no moments, and it is not exported. The student's last map, averaged over its places, predicts the teacher's CLS token
through a head with one hidden layer (feature distillation, arXiv 1412.6550). The target is normalised over its 768
numbers, as in data2vec (2202.03555).

Patch tokens are left out: at 224 px a ResNet-50 has 7 x 7 places and the teacher 16 x 16 patches. A second view of the
same boxes gives both towers one grid, at five times the student's cost. The student then sees 512 px:

    views.large   = dict(view='crop', part='cxr', size=512, boxes='crop', photometric='radiograph')
    heads.patches = dict(head='linear', out=768, bias=True)
    one term more = dict(term='regress', name='patches', student='student/image/large/patches>patches',
                         teacher='public/large/crop/patches')

Certain (published files): the teachers are ViT-B/14 with positions for 518 px; RAD-DINO sees grey values on three
channels with mean .5307 and deviation .2583, DINOv2 has the mean and deviation of ImageNet. Keep those of the teacher.
Ours: everything else, as in `distill_vits14`, and the hidden layer. --config.views.crop.size=518 shows the teacher what
it was trained on, at six times the cost. A teacher of another width needs a head with that `out`.
Micro-batches are refused, because the BatchNorms of the tower need the whole batch.

Cost: .07 TFLOP an image, 4 EFLOP in all: 3.4 hours of one H100 at 30 % of its peak. Not run at this size.
Expect `term/cls/loss` in metrics.jsonl to fall below `term/cls/start`, the loss of the best constant answer, in the
first thousand steps. Judge the student beside its teacher: `medjax probe --run RUN --data DATA --encoder PATH`.
"""

from ml_collections import ConfigDict

STEPS, BATCH = 50_000, 1_024


def get_config(weights: str = 'rad-dino.safetensors') -> ConfigDict:
    return ConfigDict(
        dict(
            total_steps=STEPS,
            batch_size=BATCH,
            seed=0,
            rows_per_group=1,
            micro_batches=1,
            dtype='bfloat16',
            image=dict(channels=3, mean=0.5307, std=0.2583),
            data=dict(cxr=dict(sources=dict(main=1.0))),
            views=dict(
                crop=dict(view='crop', part='cxr', size=224, area=(0.25, 1.0), flip=0.0, photometric='radiograph'),
            ),
            towers=dict(
                image=dict(tower='resnet', variant='50', norm='batch'),
                large=dict(tower='vit', variant='B/14', native_size=518),
            ),
            heads=dict(cls=dict(head='mlp', out=768, hidden=2_048)),
            teachers=dict(
                public=dict(
                    rule='frozen',
                    of=['towers/large'],
                    init_from=dict(path=weights, take=['towers/large=towers/image']),
                )
            ),
            terms=[
                dict(
                    term='regress',
                    name='cls',
                    student='student/image/crop/cls>cls',
                    teacher='public/large/crop/cls',
                )
            ],
            optim=dict(
                lr=1e-3,
                schedule=dict(rule='cosine', start=1.0, end=1e-3, warmup=STEPS // 20),
                weight_decay=0.05,
                clip=3.0,
            ),
            export=dict(network='student', towers=['image'], heads=[], every=5_000),
            checkpoint=dict(every=1_000, keep=2),
            log=dict(every=50),
        )
    )
