"""The interfaces of other libraries, answered by physnode's own engine."""
