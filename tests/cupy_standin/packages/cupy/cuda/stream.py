from cupy_standin.streams import Event, ExternalStream, Stream
from cupy_standin.streams import current_stream as get_current_stream
from cupy_standin.streams import elapsed_time as get_elapsed_time

__all__ = ["Event", "ExternalStream", "Stream", "get_current_stream", "get_elapsed_time"]
