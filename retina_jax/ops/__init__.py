"""Pure functions of arrays: anchors, boxes, matching, targets, losses, candidates."""
