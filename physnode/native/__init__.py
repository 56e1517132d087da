"""The compiled driver: a solve and its backward sweep as native code, made from the same functions that the eager driver runs.

``advance``, ``begin``, the read-out and ``pull_back`` are traced once for one trajectory (:mod:`tracing`), become scalar
expressions (:mod:`lowering`, :mod:`expressions`), and from these C++ in which one vector register holds one component of several
trajectories (:mod:`emit`, :mod:`program`). Each trajectory keeps its own steps; one that ends gives its place in the register to
the next. What a step needs stays in the nearest cache, and nothing but the states of accepted steps goes to memory.
"""
