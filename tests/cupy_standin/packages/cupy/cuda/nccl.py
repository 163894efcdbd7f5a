from cupy_standin.nccl import (  # noqa: F401
    NcclCommunicator,
    NcclError,
    available,
    get_unique_id,
    get_version,
    groupEnd,
    groupStart,
)
