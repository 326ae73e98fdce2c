"""Floor 2: computation on arrays and tensors. No I/O, no Ray, no MLflow."""
