"""How one solve runs: methods, step-size control, the loop, what is read out of it. It knows nothing of gradients or files."""
