"""What a stage says while it runs: heartbeats, events, TensorBoard, lines. A slow or dead reader of any of them never holds up a step."""
