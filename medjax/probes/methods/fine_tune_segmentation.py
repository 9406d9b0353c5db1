"""Segmentation by the whole encoder: it learns the structures together with a decoder.

The recipe is configs/fine_tune_segmentation.py. `segmentation` and `segmentation_decoder` keep the encoder as it is.
They have the same records and metrics. See medjax/probes/segment_tuning.py for how the export is chosen and judged.
"""

from __future__ import annotations

from medjax.probes.segment_tuning import SegmentTuning

job = SegmentTuning('fine_tune_segmentation')
name, requirements, run = job.name, job.requirements, job.run
