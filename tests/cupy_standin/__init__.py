"""A strict stand-in for CuPy, by NumPy: GPU code in ``make test``, without a GPU.

    PYTHONPATH=tests python -m pytest -p cupy_standin.plugin tests/gpu/test_ops_on_gpu.py

It has the names that CuPy 14.2 has (``cupy_names.json``) and what disttorch needs of each. What CuPy
refuses raises here, too: NumPy arrays among operands, ``numpy.asarray(a)``, 16-bit products of more than
two axes, sorts of bfloat16. Kernels run through ``cuda_host``, cuBLAS is ``cublas_twin``. Beyond that:

- every use of memory is checked for its order between streams (``order.RaceError``);
- blocks of the pool are used again as soon as CuPy may, and hold garbage;
- arrays end at pages that cannot be touched;
- captures compute nothing, and refuse what CUDA refuses;
- ``order.counts`` counts launches, uploads and whatever makes the host wait.

What it cannot show: races between the threads of a kernel, speed, and what CuPy's own kernels round
differently from NumPy.
"""
