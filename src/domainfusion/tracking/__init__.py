"""Where a run's records go besides its folder: TensorBoard, Weights & Biases, MLflow, or a tracker of one's own."""
