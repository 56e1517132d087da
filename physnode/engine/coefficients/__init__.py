"""Published coefficients of one-step methods, one source a file, and the order conditions every table must meet."""
