"""Bench: throughput and accuracy of nonlocal kernels, side by side with the strongest baselines."""
