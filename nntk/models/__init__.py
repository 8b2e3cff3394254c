"""Models as a kernel sees them: which parameters are displaced, and how outputs are evaluated."""
