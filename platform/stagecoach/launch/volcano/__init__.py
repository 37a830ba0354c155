"""The `kubernetes` launcher: Volcano Jobs, for clusters standardised on Volcano. Made by TorchX's own scheduler, its traps avoided."""
