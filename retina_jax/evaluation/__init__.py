"""Scoring on the host: NMS, COCO metrics, the report."""
