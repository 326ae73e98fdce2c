"""Side-by-side measurements. Each prints ratios, interleaved in one process."""
