"""What diffusers itself makes of networks that langevin trains. Needs torch, diffusers and peft; nothing is downloaded.

    python reference.py layout                               # writes config.json and tensors.json of each network here
    python reference.py check MODEL INPUTS EXPECTED          # MODEL loads in diffusers and answers INPUTS with EXPECTED

`check` ends with an error unless every tensor of the folder has its place in the network, none is left over, and the output
differs by at most 1e-5 from the `sample` in EXPECTED. MODEL may be an adapter that langevin trained: its base model is loaded,
and PEFT puts the adapter on it.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import diffusers
import peft
import torch
from safetensors import safe_open
from safetensors.torch import load_file

HERE = Path(__file__).parent
BOUND = 1e-5


def networks():
    """Small ones with every kind of block that a run may train."""
    yield "unet2d", diffusers.UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
    )
    yield "dit", diffusers.DiTTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=3,
        out_channels=3,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        num_embeds_ada_norm=2,
    )


def layout():
    for name, network in networks():
        with tempfile.TemporaryDirectory() as folder:
            network.save_pretrained(folder)
            config = json.loads(Path(folder, "config.json").read_text())
            with safe_open(Path(folder, "diffusion_pytorch_model.safetensors"), "pt") as file:
                slices = {key: file.get_slice(key) for key in sorted(file.keys())}
                tensors = {key: [s.get_dtype(), s.get_shape()] for key, s in slices.items()}
        out = HERE / name
        out.mkdir(exist_ok=True)
        (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in tensors.items())
        (out / "tensors.json").write_text("{\n" + lines + "\n}\n")


def check(folder, inputs, expected):
    adapter = Path(folder, "adapter_config.json")
    if adapter.exists():
        network, cls = load(json.loads(adapter.read_text())["base_model_name_or_path"])
        network = peft.PeftModel.from_pretrained(network, folder)
        mine = {key for key in network.state_dict() if "lora_" in key}
        theirs = {key.replace(".weight", ".default.weight") for key in load_file(Path(folder, "adapter_model.safetensors"))}
        if mine != theirs:
            sys.exit(f"{folder}: {sorted(mine ^ theirs)} are in the network or in the file alone")
    else:
        network, cls = load(folder)
    given = load_file(inputs)
    names = {"sample": "hidden_states"} if cls is diffusers.DiTTransformer2DModel else {}
    with torch.no_grad():
        out = network.eval()(**{names.get(k, k): v for k, v in given.items()}).sample
    theirs = load_file(expected)["sample"]
    if out.shape != theirs.shape:
        sys.exit(f"{folder}: the output is {tuple(out.shape)}, expected {tuple(theirs.shape)}")
    worst = (out - theirs).abs().max().item()
    print(f"{type(network).__name__}: worst difference {worst:.2e} of outputs up to {theirs.abs().max().item():.2f}")
    if not worst <= BOUND:
        sys.exit(f"{folder}: differs by {worst}, more than {BOUND}")


def load(folder):
    if Path(folder, "model").is_dir():
        folder = Path(folder, "model")
    config = json.loads(Path(folder, "config.json").read_text())
    cls = getattr(diffusers, config["_class_name"])
    network, info = cls.from_pretrained(folder, output_loading_info=True, torch_dtype=torch.float32)
    faults = {key: value for key, value in info.items() if value}
    if faults:
        sys.exit(f"{folder}: {faults}")
    path = Path(folder, "scheduler_config.json")
    settings = json.loads(path.read_text())
    scheduler = getattr(diffusers, settings["_class_name"]).from_pretrained(folder)
    unknown = [key for key in settings if key[0] != "_" and scheduler.config.get(key) != settings[key]]
    if unknown:
        sys.exit(f"{path}: {settings['_class_name']} knows nothing of {unknown}")
    return network, cls


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["layout"]:
            layout()
        case ["check", *paths] if len(paths) == 3:
            check(*paths)
        case _:
            sys.exit(__doc__)
