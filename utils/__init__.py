"""What the scripts share: options, boxes, loss, evaluation, optimisation, checkpoints, reports."""
