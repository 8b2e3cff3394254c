"""The bench harness: throughput and accuracy, side by side with the strongest baselines."""
