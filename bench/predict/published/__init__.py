"""Others' published measurements, predicted from their settings alone.

The data: `corpus/*.yaml` (one file per source), `models.yaml` (their models' tensors), `ranges.yaml` (what is assumed
for settings that a source does not state). docs/published.md says how to add a measurement.
"""
