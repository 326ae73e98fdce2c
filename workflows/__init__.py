"""Floor 3: what runs, in which order, where. The only room that knows Ray."""
