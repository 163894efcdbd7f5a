from cupy_standin import devices as _devices

globals().update({k: v for k, v in vars(_devices).items() if not k.startswith("_") and k not in (
    "annotations", "ctypes", "threading", "memory", "order", "streams", "Device", "PROPERTIES")})
