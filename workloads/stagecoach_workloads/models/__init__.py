"""Single-device modules that know nothing of meshes, files or logging. Torch-free on import, so that data planning can use `splitting`.

Start at `build.build_model(plan.model, device=...)`; the parts are `vit`, `connectors`, `decoder`, `moe`, `multimodal`.
"""
