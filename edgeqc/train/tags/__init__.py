"""Training on a machine's tags: what is usual, a forecaster, alarm limits, and the reports about them."""
