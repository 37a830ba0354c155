"""Where weights come from at step 0: random numbers, Hugging Face folders, or another stage's last checkpoint."""

from stagecoach.contract.plan import Parent, Pretrained, StagePlan
from stagecoach.errors import ConfigError
from stagecoach_workloads.models.build import init_weights
from stagecoach_workloads.models.multimodal import MultimodalModel
from stagecoach_workloads.weights.importing import import_pretrained


def begin(model: MultimodalModel, plan: StagePlan) -> None:
    """Fills a sharded model with its first weights, the same ones for every number of ranks."""
    init_weights(model, plan.seed)
    if isinstance(plan.init, Pretrained):
        import_pretrained(model, plan.init)
    elif isinstance(plan.init, Parent):
        raise ConfigError("init.kind=parent is not built")
