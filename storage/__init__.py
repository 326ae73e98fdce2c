"""Floor 1: bytes in, bytes out. No torch, no Ray."""
