"""Weights in and out: equal after a round trip through `transformers` and through our own folder; what is wrong is named."""

import json
import tracemalloc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stagecoach.contract.plan import Decoder, Encoder, Lora, Model, Moe, RopeScaling
from stagecoach.errors import CheckpointError, ConfigError
from stagecoach_workloads.models.build import build_model
from stagecoach_workloads.models.decoder import Decoder as DecoderModule
from stagecoach_workloads.models.vit import VisionEncoder
from stagecoach_workloads.weights.card import ModelFacts
from stagecoach_workloads.weights.configs import decoder_from_config, decoder_to_config, encoder_from_config, encoder_to_config
from stagecoach_workloads.weights.exporting import export_decoder, export_encoder, export_model
from stagecoach_workloads.weights.importing import import_decoder, import_encoder, load_model
from stagecoach_workloads.weights.layouts import Piece
from stagecoach_workloads.weights.loading import load_pieces
from stagecoach_workloads.weights.sources import SafetensorsFolder, TensorsInMemory

FACTS = ModelFacts(name="tiny", recipe="mm1_tiny", stage="sft", steps=7, licence="apache-2.0", metrics=(("vqa", 0.5),))
LONGROPE = RopeScaling(kind="longrope", original_max_positions=64, short_factors=(1.0,) * 4, long_factors=(2.0,) * 4)
DECODERS: dict[str, dict[str, Any]] = {
    "llama": {"tied_embeddings": False, "rope_scaling": RopeScaling(kind="llama3", factor=8.0, original_max_positions=32)},
    "qwen2": {"qkv_bias": True, "rope_scaling": RopeScaling(kind="yarn", factor=2.0, original_max_positions=64)},
    "phi3": {"tied_embeddings": False, "sliding_window": 17, "rope_scaling": LONGROPE},
}


def random_model(plan: Model) -> Any:
    model = build_model(plan, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.mark.parametrize("layout", DECODERS)
def test_a_decoder_goes_out_through_transformers_and_comes_back(
    layout: str, tiny_model: Callable[..., Model], transformers: ModuleType, tmp_path: Path
) -> None:
    plan = tiny_model()
    plan = replace(plan, decoder=replace(plan.decoder, added_tokens=0, **DECODERS[layout]))
    model = random_model(plan)
    export_decoder(TensorsInMemory(model.state_dict()), plan.decoder, str(tmp_path / "out"), layout=layout, shard_bytes=20_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    tokens = torch.randint(0, 61, (2, 30))
    with torch.no_grad():
        zeros = torch.zeros_like(tokens)
        ours = model.eval()(tokens, document_ids_BT=zeros, want="logits").logits_BTV
        assert (peer(tokens).logits - ours).abs().max() < 1e-5
    peer.save_pretrained(tmp_path / "peer")  # its own spelling of the same model
    back = build_model(replace(plan, decoder=replace(plan.decoder, added_tokens=3)))
    report = import_decoder(back.decoder, str(tmp_path / "peer"))
    assert set(report.grown.values()) == {3}
    for name, tensor in model.decoder.state_dict().items():
        found = back.decoder.state_dict()[name]
        assert torch.equal(found[: tensor.shape[0]], tensor), name
        if found.shape != tensor.shape:
            assert (found[-3:] - tensor.mean(0)).abs().max() < 1e-6  # as stated


@pytest.mark.parametrize("layout", ["clip", "siglip"])
def test_an_encoder_goes_out_through_transformers_and_comes_back(
    layout: str, tiny_model: Callable[..., Model], transformers: ModuleType, tmp_path: Path
) -> None:
    plan = tiny_model()
    plan = replace(plan, encoder=replace(plan.encoder, layout=layout))
    model = random_model(plan)
    export_encoder(TensorsInMemory(model.state_dict()), plan.encoder, str(tmp_path / "out"))
    peer = (
        getattr(transformers, {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}[layout]).from_pretrained(tmp_path / "out").eval()
    )
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = peer(pixels).last_hidden_state
        assert (model.encoder([pixels])[0] - (expected[:, 1:] if layout == "clip" else expected)).abs().max() < 1e-5
    peer.save_pretrained(tmp_path / "peer")
    back = build_model(plan)
    import_encoder(back.encoder, str(tmp_path / "peer"))
    assert all(torch.equal(back.encoder.state_dict()[name], tensor) for name, tensor in model.encoder.state_dict().items())


def test_a_full_clip_checkpoint_gives_its_vision_tower(transformers: ModuleType, tmp_path: Path) -> None:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}
    peer = transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision, text_config=text))
    peer.save_pretrained(tmp_path)
    plan = Encoder(layout="clip", width=32, layers=2, heads=2, mlp_width=64, patch_size=4, image_size=16)
    encoder = VisionEncoder(plan)
    report = import_encoder(encoder, str(tmp_path))
    assert torch.equal(encoder.position, peer.vision_model.embeddings.position_embedding.weight)
    assert any(name.startswith("text_model.") for name in report.ignored)


def test_a_whole_model_comes_back_equal(
    tiny_model: Callable[..., Model], tmp_path: Path, write_tokenizer: Callable[[Path, int], Path]
) -> None:
    plan = tiny_model()
    plan = replace(plan, decoder=replace(plan.decoder, moe=Moe(experts=2, every=2)))
    model = random_model(plan)
    tokenizer = write_tokenizer(tmp_path / "tokenizer", 63)
    target = tmp_path / "out"
    source = TensorsInMemory(model.state_dict())
    export_model(source, plan, str(target), facts=FACTS, tokenizer=str(tokenizer), shard_bytes=30_000)
    names = {path.name for path in target.iterdir()}
    assert names >= {"config.json", "preprocessor_config.json", "README.md", "tokenizer.json", "model.safetensors.index.json"}
    back = load_model(str(target))
    assert back.plan == plan
    assert all(torch.equal(back.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    card = (target / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "| recipe | mm1_tiny |" in card
    assert "| vqa | 0.5 |" in card
    settings = json.loads((target / "preprocessor_config.json").read_text())
    assert settings["size"] == {"height": 16, "width": 16}
    assert settings["tokens_per_image"] == 4


def test_an_export_over_an_older_one_leaves_nothing_of_it(tiny_model: Callable[..., Model], tmp_path: Path) -> None:
    plan, target = tiny_model(), str(tmp_path / "out")
    first, second = random_model(plan), build_model(plan, seed=9)
    export_model(TensorsInMemory(first.state_dict()), plan, target, facts=FACTS, shard_bytes=30_000)  # several shards and an index
    export_model(TensorsInMemory(second.state_dict()), plan, target, facts=FACTS)
    assert [path.name for path in (tmp_path / "out").glob("model*")] == ["model.safetensors"]
    assert all(torch.equal(load_model(target).state_dict()[name], tensor) for name, tensor in second.state_dict().items())


def test_an_export_that_was_cut_off_is_no_model_and_is_written_again(tiny_model: Callable[..., Model], tmp_path: Path) -> None:
    plan, target = tiny_model(), str(tmp_path / "out")
    model = random_model(plan)

    class Dies(TensorsInMemory):
        def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
            if name == "decoder.norm.weight":
                raise InterruptedError
            return super().read(name, start, stop)

    export_model(TensorsInMemory(model.state_dict()), plan, target, facts=FACTS)
    with pytest.raises(InterruptedError):
        export_model(Dies(model.state_dict()), plan, target, facts=FACTS, shard_bytes=30_000)
    with pytest.raises(ConfigError, match=r"config.json does not exist"):
        load_model(target)
    export_model(TensorsInMemory(model.state_dict()), plan, target, facts=FACTS)
    assert all(torch.equal(load_model(target).state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_an_export_spares_its_source_and_other_models(tiny_model: Callable[..., Model], decoder_folder: Path) -> None:
    plan = tiny_model()
    before = {path.name: path.read_bytes() for path in decoder_folder.iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match=r"holds another model \(its config.json differs\); give a new folder"):
        export_model(TensorsInMemory(build_model(plan).state_dict()), plan, str(decoder_folder), facts=FACTS)
    decoder = replace(plan.decoder, added_tokens=0)
    with SafetensorsFolder(str(decoder_folder)) as source, pytest.raises(ConfigError, match="is where the weights come from"):
        export_decoder(source, decoder, str(decoder_folder), layout="llama")
    assert {path.name: path.read_bytes() for path in decoder_folder.iterdir() if path.is_file()} == before


def test_upcycling_from_a_dense_checkpoint_equals_it(tiny_model: Callable[..., Model], tmp_path: Path) -> None:
    plan = tiny_model()
    plan = replace(plan, decoder=replace(plan.decoder, tied_embeddings=False))
    dense = random_model(plan)
    sparse_plan = replace(plan.decoder, moe=Moe(experts=3, every=2))
    for layout in ("llama", "phi3"):
        export_decoder(TensorsInMemory(dense.state_dict()), plan.decoder, str(tmp_path / layout), layout=layout)
        config = json.loads((tmp_path / layout / "config.json").read_text())
        assert config["vocab_size"] == 63
        grown = replace(sparse_plan, vocab_size=63, added_tokens=0)
        sparse = build_model(replace(plan, decoder=grown))
        report = import_decoder(sparse.decoder, str(tmp_path / layout))
        assert report.kept == ["blocks.1.ffn.router.weight"]
        sparse.encoder.load_state_dict(dense.encoder.state_dict())
        tokens = torch.randint(0, 61, (1, 12))
        difference = sparse.eval()(tokens, want="logits").logits_BTV - dense.eval()(tokens, want="logits").logits_BTV
        assert difference.abs().max() < 1e-5


def test_configurations_survive_a_round_trip(tiny_decoder: Callable[..., Decoder]) -> None:
    for layout, changes in DECODERS.items():
        plan = tiny_decoder(**changes)
        assert decoder_from_config(decoder_to_config(plan, layout), "memory") == plan
    encoder = Encoder(layout="siglip", width=32, layers=2, heads=2, mlp_width=64, patch_size=4, image_size=16, norm_eps=1e-6)
    assert encoder_from_config(encoder_to_config(encoder), "memory") == encoder
    old = {"model_type": "llama", "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    old |= {"intermediate_size": 48, "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}, "rms_norm_eps": 1e-5}
    assert decoder_from_config(old, "memory").rope_scaling == RopeScaling(kind="linear", factor=2.0)  # as transformers 4 wrote it
    assert decoder_from_config(old, "memory").rope_theta == 5e5


def test_reading_holds_no_more_than_a_tensor_beside_the_shard(tiny_model: Callable[..., Model], tmp_path: Path) -> None:
    plan = tiny_model()
    model = build_model(replace(plan, decoder=replace(plan.decoder, width=256, ffn_width=512, vocab_size=2000)))
    source = TensorsInMemory(model.state_dict())
    export_model(source, model.plan, str(tmp_path / "out"), facts=FACTS, shard_bytes=2_000_000)
    shards = sorted(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(shards) >= 4
    live, peak = 0, 0

    class Counted(SafetensorsFolder):
        def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
            nonlocal live, peak
            tensor = super().read(name, start, stop)
            live += tensor.nbytes
            peak = max(peak, live)

            def gone(size: int = tensor.nbytes) -> None:
                nonlocal live
                live -= size

            weakref.finalize(tensor, gone)
            return tensor

    tracemalloc.start()
    with Counted(str(tmp_path / "out")) as folder:
        load_pieces(model, [Piece(ours=name, theirs=name) for name, _ in model.named_parameters()], folder)
    traced = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= shards[-1]
    assert traced <= shards[-1]
    assert live == 0


# --- bad input --------------------------------------------------------------------------------------------------------------


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_missing_and_unexpected_tensors_are_named_with_the_nearest(decoder_folder: Path, tiny_decoder: Callable[..., Decoder]) -> None:
    def misname(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.self_attn.q_projection.weight"] = tensors.pop("model.layers.1.self_attn.q_proj.weight")

    rewrite(decoder_folder, misname)
    says = (
        r"missing `model.layers.1.self_attn.q_proj.weight` \(nearest: `model.layers.1.self_attn.q_projection.weight`\); "
        r"unexpected `model.layers.1.self_attn.q_projection.weight`"
    )
    with pytest.raises(CheckpointError, match=says):
        import_decoder(DecoderModule(tiny_decoder()), str(decoder_folder))


def test_another_shape_is_named(decoder_folder: Path, tiny_decoder: Callable[..., Decoder]) -> None:
    with pytest.raises(ConfigError, match="model.decoder.ffn_width=40 where config.json has 48"):
        import_decoder(DecoderModule(tiny_decoder(ffn_width=40)), str(decoder_folder))
    rewrite(decoder_folder, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(31)}))
    with pytest.raises(CheckpointError, match=r"`model.norm.weight` is \(31,\), which gives \(31,\) where `norm.weight` is \(32,\)"):
        import_decoder(DecoderModule(tiny_decoder()), str(decoder_folder))


def test_damaged_and_refused_files_are_named(decoder_folder: Path, tmp_path: Path) -> None:
    file = decoder_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model.safetensors is cut off or is no safetensors file .*; copy it again"):
        SafetensorsFolder(str(decoder_folder))
    file.unlink()
    torch.save({}, decoder_folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pytorch_model.bin is a pickle: reading one runs the code in it"):
        SafetensorsFolder(str(decoder_folder))
    (decoder_folder / "pytorch_model.bin").unlink()
    with pytest.raises(ConfigError, match=r"has no \*.safetensors"):
        SafetensorsFolder(str(decoder_folder))
    with pytest.raises(ConfigError, match="does not exist or is empty"):
        SafetensorsFolder(str(tmp_path / "nowhere"))


def test_an_index_that_names_an_absent_shard_is_refused(decoder_folder: Path) -> None:
    index = {"weight_map": {"a": "model-00002.safetensors"}}
    (decoder_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="names model-00002.safetensors, which the folder lacks"):
        SafetensorsFolder(str(decoder_folder))


def test_layouts_that_are_not_built_are_named(decoder_folder: Path, tiny_decoder: Callable[..., Decoder]) -> None:
    config = json.loads((decoder_folder / "config.json").read_text())
    for change, says in (
        ({"model_type": "mamba"}, r"model_type='mamba' is no layout we read; known here: clip, clip_vision_model, llama, phi3, qwen2"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'; only silu"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not 1"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_type='dynamic' is not built"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "truncate": False}}, "rope_parameters.truncate=false is not built"),
        ({"rope_parameters": {"rope_type": "yarn", "mrope_section": [1, 2]}}, "rope_parameters has mrope_section, which is not built"),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}, "max_window_layers=2"),
        ({"model_type": "clip_vision_model", "hidden_act": "gelu"}, "language model|vision model"),
    ):
        with pytest.raises(ConfigError, match=says):
            decoder_from_config({**config, **change}, "memory")
    with pytest.raises(ConfigError, match=r"hidden_act='gelu'; clip is built with 'quick_gelu' only"):
        encoder_from_config({"model_type": "clip_vision_model", "hidden_act": "gelu"}, "memory")
    with pytest.raises(ConfigError, match=r"decoder.qkv_bias=True does not fit layout 'phi3'"):
        export_decoder(TensorsInMemory({}), tiny_decoder(qkv_bias=True), "memory://x", layout="phi3")
    with pytest.raises(ConfigError, match=r"layout 'llama' has no experts .*; export the whole model instead"):
        export_decoder(TensorsInMemory({}), tiny_decoder(moe=Moe(experts=2, every=1)), "memory://x", layout="llama")
    with pytest.raises(ConfigError, match="unknown decoder layout 'gpt2'; known here: llama, qwen2, phi3"):
        export_decoder(TensorsInMemory({}), tiny_decoder(), "memory://x", layout="gpt2")


def test_a_tokenizer_larger_than_the_embedding_is_refused(
    decoder_folder: Path, tiny_decoder: Callable[..., Decoder], write_tokenizer: Callable[[Path, int], Path]
) -> None:
    write_tokenizer(decoder_folder, 64)
    with pytest.raises(ConfigError, match=r"token ids up to 63, but the embedding has 61 rows .*; set model.decoder.added_tokens=3"):
        import_decoder(DecoderModule(tiny_decoder()), str(decoder_folder))
    import_decoder(DecoderModule(tiny_decoder(added_tokens=3)), str(decoder_folder))


def test_adapters_are_merged_before_export(tiny_model: Callable[..., Model], tmp_path: Path) -> None:
    plan = tiny_model(lora=Lora(rank=2, alpha=4.0))
    with pytest.raises(ConfigError, match="has low-rank adapters; merge them first"):
        export_model(TensorsInMemory(build_model(plan).state_dict()), plan, str(tmp_path), facts=FACTS)
