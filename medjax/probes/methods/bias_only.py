"""Bias only: the biases of the encoder learn the labels, and all else stays (BitFit); configs/bias_only.py.

See medjax/probes/tuning.py for where the training lies and how its export is chosen.
"""

from __future__ import annotations

from medjax.probes.tuning import Tuning

job = Tuning('bias_only')
name, requirements, run = job.name, job.requirements, job.run
