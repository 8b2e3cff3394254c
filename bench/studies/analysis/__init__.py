"""Parts that studies share: networks, fits, intervals, claims and figures."""
