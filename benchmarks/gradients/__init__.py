"""What each gradient of a solve is worth and costs, measured: ``python -m benchmarks.gradients`` writes docs/gradients.md."""
