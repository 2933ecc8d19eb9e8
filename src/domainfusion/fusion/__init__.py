"""Online lightweight augmentation: style and content, selection, the synthetic dataset."""
