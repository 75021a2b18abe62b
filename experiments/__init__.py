"""What stands on the laboratory: comparisons, ablations, analyses. Run as `python -m experiments.compare`."""
