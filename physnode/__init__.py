"""physnode: fit dynamical systems to observed trajectories."""
