"""The data: annotations, images, augmentation, batches, the embedded set."""
