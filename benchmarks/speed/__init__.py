"""How fast a solve and its gradient are: against other libraries, against the limit, and as problems grow."""
