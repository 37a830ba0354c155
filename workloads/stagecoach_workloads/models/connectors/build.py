"""From plan to connector."""

from torch import nn

from stagecoach.contract.plan import Model
from stagecoach_workloads.models.connectors.average import AveragePool
from stagecoach_workloads.models.connectors.c_abstractor import CAbstractor
from stagecoach_workloads.models.connectors.resampler import Resampler


def build_connector(plan: Model) -> nn.Module:
    """The connector that `plan.connector` names. Raises ConfigError when its shape cannot work."""
    connector, vision_dim, model_dim = plan.connector, plan.encoder.width, plan.decoder.width
    if connector.kind == "c_abstractor":
        side = plan.encoder.image_size // plan.encoder.patch_size
        return CAbstractor(
            side=side,
            vision_dim=vision_dim,
            hidden=connector.hidden,
            model_dim=model_dim,
            tokens=connector.tokens,
            depth=connector.depth,
        )
    if connector.kind == "average_pool":
        return AveragePool(vision_dim=vision_dim, model_dim=model_dim, tokens=connector.tokens)
    return Resampler(
        kind=connector.kind,
        vision_dim=vision_dim,
        model_dim=model_dim,
        tokens=connector.tokens,
        depth=connector.depth,
        heads=connector.heads,
        head_dim=connector.head_dim,
        mlp_ratio=connector.mlp_ratio,
    )
