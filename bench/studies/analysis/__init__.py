"""What the studies share: networks, fits, intervals, claims and figures."""
