"""Evaluation: detection, NMS, COCO metrics, reports."""
