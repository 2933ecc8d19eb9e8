"""Speed, as ratios measured in one run: `python -m benchmarks [ROW…] [--json]`. Never part of the tests."""
