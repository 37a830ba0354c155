"""LaunchSpec to TorchX AppDef: one role, one replica a node, the same command everywhere (interfaces.md section 4)."""

import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from stagecoach.contract.launch import LaunchSpec
from stagecoach.contract.records import canonical_json, to_plain
from stagecoach.errors import ConfigError

if TYPE_CHECKING:
    from torchx.specs import AppDef, Resource

ROLE = "node"  # no hyphen: TorchX's Volcano scheduler writes the role's name into a bash variable
SUPERVISOR = "stagecoach.supervisor"
DIGEST_KEY, SPEC_KEY = "stagecoach/spec-digest", "stagecoach/spec"  # of AppDef.metadata
SECRETS_KEY = "stagecoach/secrets"  # of Role.metadata
RESERVED = (
    "STAGECOACH_JOB_URI", "STAGECOACH_SUBMISSION", "STAGECOACH_NODE_INDEX", "STAGECOACH_GRACE_S", "STAGECOACH_PORT", "STAGECOACH_HOST",
    "STAGECOACH_ATTEMPT", "STAGECOACH_LOCAL_DIR", "STAGECOACH_LOCAL_STATE", "STAGECOACH_TREE",
    "JOB_COMPLETION_INDEX",
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")


def build_app(spec: LaunchSpec, *, module: str = SUPERVISOR) -> "AppDef":
    """The job as TorchX sees it. `module` is what `python -m` starts on every node.

    Nothing secret is in it: a SecretRef stays a reference, in the role's metadata, for the scheduler to resolve.
    Raises ConfigError when a scheduler could not run the spec.
    """
    from torchx.specs import AppDef, Role, macros

    check_spec(spec)
    environment = {
        "STAGECOACH_LOG": "json",
        **{name: literal(value) for name, value in spec.environment.items()},
        "STAGECOACH_JOB_URI": literal(spec.job_uri),
        "STAGECOACH_SUBMISSION": str(spec.submission),
        "STAGECOACH_GRACE_S": str(spec.grace_s),
        "STAGECOACH_NODE_INDEX": macros.replica_id,
    }
    role = Role(
        name=ROLE,
        image=spec.image or "",
        entrypoint="python",
        args=["-m", module],
        env=environment,
        num_replicas=spec.nodes,
        resource=build_resource(spec),
        metadata={SECRETS_KEY: [to_plain(secret) for secret in spec.secrets]} if spec.secrets else {},
    )
    return AppDef(name=spec.name, roles=[role], metadata={DIGEST_KEY: spec.digest, SPEC_KEY: canonical_json(to_plain(spec)).decode()})


def build_resource(spec: LaunchSpec) -> "Resource":
    """What one node needs: its ranks' shares, one accelerator a rank (none on CPU hardware)."""
    from torchx.specs import Resource

    ranks, wanted = spec.ranks_per_node, spec.resources
    return Resource(
        cpu=max(1, math.ceil(wanted.cpus_per_rank * ranks)),
        gpu=0 if wanted.hardware.startswith("cpu") else ranks,
        memMB=math.ceil(wanted.memory_gb_per_rank * ranks * 1000),
        capabilities={},
    )


def literal(value: str) -> str:
    """`value` as it must stand in an AppDef so that TorchX's macro substitution gives it back unchanged (`$$` would lose a `$`)."""
    return value.replace("$", "$$")


def check_spec(spec: LaunchSpec) -> None:
    """Raises ConfigError for a name no scheduler takes and for variables that the platform sets itself."""
    if not NAME.fullmatch(spec.name):
        raise ConfigError(f"launch.name {spec.name!r}: use 1-63 characters a-z, 0-9 and '-', starting with a letter, not ending with '-'")
    secrets = {secret.variable for secret in spec.secrets}
    taken = sorted((set(spec.environment) | secrets) & set(RESERVED))
    if taken:
        raise ConfigError(f"launch.environment sets {', '.join(taken)}; the platform sets these itself: leave them out")
    both = sorted(set(spec.environment) & secrets)
    if both:
        raise ConfigError(f"launch.environment and launch.secrets both set {', '.join(both)}; keep the secret and leave out the value")


def spec_of(metadata: Mapping[str, str]) -> LaunchSpec | None:
    """The LaunchSpec inside an AppDef's metadata; None when the app is another's (plain `torchx run`)."""
    from stagecoach.contract.records import validate

    stored = metadata.get(SPEC_KEY)
    return None if stored is None else validate(LaunchSpec, json.loads(stored), where="launch")
