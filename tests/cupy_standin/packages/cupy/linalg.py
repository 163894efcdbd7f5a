from cupy_standin import functions as _functions

globals().update(_functions.linalg)
