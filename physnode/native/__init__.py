"""The compiled driver: a solve and its backward sweep as native code, made from the same functions that the eager driver runs.

``begin``, ``advance``, the read-out, ``pull_back`` and the field are traced once for one trajectory (``tracing``), become
scalar expressions (``lowering``, ``operations``, ``expressions``; ``reverse`` transposes those of the field), and then C++ in
which one vector register holds one number of several trajectories (``body``, ``spelling``, ``program``, ``field_code``,
``shared_code``, put together in ``assembly``). Each trajectory keeps its own steps; one that ends gives its lane to the next.
``runtime.hpp`` is the arithmetic, ``forward.hpp`` and ``backward.hpp`` the loops; ``build`` compiles, ``library`` calls, and
``problem``, ``code``, ``codes`` and ``choice`` say which code serves a solve.
"""
