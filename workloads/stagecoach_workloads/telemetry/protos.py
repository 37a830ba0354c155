"""TensorBoard's messages. Imported by the thread that writes them, since importing takes time too."""

from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata  # type: ignore[import-untyped]
from tensorboard.compat.proto.tensor_pb2 import TensorProto  # type: ignore[import-untyped]
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto  # type: ignore[import-untyped]

__all__ = ["Event", "Summary", "SummaryMetadata", "TensorProto", "TensorShapeProto"]
