"""What a folder of weights holds, from headers and config.json alone."""

import math
from typing import Any

from stagecoach.contract.records import to_plain
from stagecoach.errors import ConfigError
from stagecoach_workloads.weights.configs import decoder_from_config, encoder_from_config, layout_of
from stagecoach_workloads.weights.folder import Folder
from stagecoach_workloads.weights.importing import largest_token_id, read_model_plan
from stagecoach_workloads.weights.sources import SafetensorsFolder


def inspect_folder(uri: str) -> dict[str, Any]:
    """Layout, the plan's fields, tensors with shapes and types, parameters, tokenizer size. Raises ConfigError, CheckpointError."""
    with SafetensorsFolder(uri) as source:
        shapes = source.shapes()
        names = source.folder.names()
        tensors = {name: {"shape": list(shape), "dtype": source.types[name]} for name, shape in shapes.items()}
        found: dict[str, Any] = {
            "uri": source.uri,
            "parameters": sum(math.prod(shape) for shape in shapes.values()),
            "dtypes": sorted(set(source.types.values())),
            "tensors": tensors,
        }
        if "config.json" in names:
            found |= _layout(source.folder)
        if "tokenizer.json" in names:
            found["tokenizer_size"] = largest_token_id(source.folder) + 1
        return found


def _layout(folder: Folder) -> dict[str, Any]:
    config = folder.read_json("config.json")
    if "format" in config:
        return {"layout": "stagecoach", "model": to_plain(read_model_plan(folder))}
    try:
        layout = layout_of(config, folder.uri)
        part = "encoder" if layout in ("clip", "siglip") else "decoder"
        plan = encoder_from_config(config, folder.uri) if part == "encoder" else decoder_from_config(config, folder.uri)
    except ConfigError as error:
        return {"layout": None, "problem": str(error)}
    return {"layout": layout, part: to_plain(plan)}


def describe(found: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"{found['uri']}: {found['parameters']:,} parameters in {len(found['tensors'])} tensors, {', '.join(found['dtypes'])}"]
    lines.append(f"layout: {found.get('layout') or 'unknown'}")
    if "problem" in found:
        lines.append(found["problem"])
    if "tokenizer_size" in found:
        lines.append(f"tokenizer: {found['tokenizer_size']} ids")
    for part in ("encoder", "decoder"):
        if part in found:
            lines.append(f"{part}: " + ", ".join(f"{name}={value}" for name, value in found[part].items()))
    width = max(len(name) for name in found["tensors"])
    lines += [f"  {name:<{width}}  {tensor['dtype']:<5} {tensor['shape']}" for name, tensor in found["tensors"].items()]
    return "\n".join(lines)
