"""From a LaunchSpec to running nodes. Importing this draws in neither torchx nor a cluster client: `registry.get_launcher` does, on use."""
