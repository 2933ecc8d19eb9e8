"""Whole jobs: one run, a benchmark, the demo, the judgement of an LDM."""
