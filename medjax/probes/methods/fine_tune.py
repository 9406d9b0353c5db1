"""Fine-tuning: the whole encoder learns the labels, with layer-wise decay of the learning rate; configs/fine_tune.py.

It is the upper end of what an encoder is worth on these labels; the linear probe is the lower one. See
medjax/probes/tuning.py for where the training lies and how its export is chosen.
"""

from __future__ import annotations

from medjax.probes.tuning import Tuning

job = Tuning('fine_tune')
name, requirements, run = job.name, job.requirements, job.run
