"""What a GPU computes with beside CuPy's own functions.

``source`` and ``kernel`` turn the CUDA C files of ``csrc/`` into functions; every other module has
one family of functions ``f(xp, ...)``, which ``cupy_backend`` makes methods of the GPU's namespace in
place of the plain formulas of the same names. Only ``kernel`` and those modules touch CuPy, through
the arrays and namespaces that they are given.
"""
