"""``nntk-bench predict``: what the design's workloads should take on a card that is not at hand, by machine code."""
