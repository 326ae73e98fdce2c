"""The imbalance study: the same classifiers trained with different losses, audited, and set beside each other."""
