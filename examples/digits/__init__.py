"""A labelled archive of real handwritten digits on noisy canvases, and a classifier trained on it."""
