"""The published rules that turn raw outputs into one panoptic map: `instances` for detectors, `queries` for mask
transformers.
"""
