"""How accurate the methods are, measured: ``python -m benchmarks.accuracy`` writes docs/accuracy.md and holds its limits."""
