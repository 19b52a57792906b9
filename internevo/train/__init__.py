"""Training: a run is a chain of stages, a stage is a loop of steps."""
