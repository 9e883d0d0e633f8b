"""Langevin's times beside PyTorch's, as tables in Markdown: reads lines of JSON of `langevin kernels bench --model peers --training`, of `langevin bench`
and of benches/peers/pytorch_gpu.py.

    python3 compare.py FILE ...
"""
import json
import re
import sys


def lines(paths):
    for path in paths:
        with open(path) as file:
            for line in file:
                if line.startswith("{"):
                    yield json.loads(line)


def shapes(text):
    return [[int(n) for n in part.split(",")] for part in re.findall(r"\[([\d, ]+)\]", text)]


def kernel_keys(line):
    """What PyTorch's script calls an op of the lab, and its shape there."""
    s, op = shapes(line["shapes"]), line["op"]
    if op == "linear":
        return [("matmul bf16", (*s[0], s[1][1]))]
    if op == "conv2d":
        shape = (*s[0], s[1][2])
        # As many channels as columns: the gradient of the input is the same product.
        return [("conv3x3 bf16 forward", shape), ("conv3x3 bf16 data gradient", shape)]
    if op == "conv2d_weight_grad":
        return [("conv3x3 bf16 weight gradient", (*s[0], s[1][3]))]
    if op in ("attention", "attention_grad"):
        batch, heads, tokens = s[4]
        return [("attention bf16 " + ("forward" if op == "attention" else "backward"), (batch, heads, tokens, s[0][2] // heads))]
    if op == "group_norm":
        return [("group norm + silu bf16", tuple(s[0]))]
    if op == "layer_norm":
        return [("layer norm + modulation bf16", tuple(s[0]))]
    return []


NETWORKS = {"unet": "ddpm-cifar10 forward bf16", "dit-xl-2": "dit-xl-2 forward bf16", "sd15": "sd15 forward bf16", "unet-train": "ddpm-cifar10 training step",
            "edm-train": "edm-ddpmpp training step"}


def main():
    ours, theirs = {}, {}
    for line in lines(sys.argv[1:]):
        if line.get("peer") == "pytorch" and "ms" in line:
            variant = line.get("backend") or line.get("mode") or "eager"
            theirs.setdefault((line["what"], tuple(line["shape"])), {})[variant] = line["ms"]
        elif "timing" in line and line["dtype"] == "bf16":
            for key in kernel_keys(line):
                ours[key] = line["timing"]["ms_median"]
        elif line.get("case") in NETWORKS and line["dtype"] == "bf16":
            ours[NETWORKS[line["case"]], (line["batch"],)] = line["ms_median"]
    # PyTorch's backward alone: with the forward before it, less the forward.
    for (what, shape), variants in list(theirs.items()):
        forward = theirs.get(("attention bf16 forward", shape), {})
        if what == "attention bf16 forward and backward":
            theirs["attention bf16 backward", shape] = {v: ms - forward[v] for v, ms in variants.items() if v in forward}
    print("| what | shape | langevin, ms | PyTorch, ms | PyTorch's fastest / langevin |\n|---|---|---|---|---|")
    for key in ours:
        if key in theirs:
            variants = sorted(theirs[key].items(), key=lambda item: item[1])
            all_ = ", ".join(f"{ms:.4f} {name.lower()}" for name, ms in variants)
            print(f"| {key[0]} | {'×'.join(map(str, key[1]))} | {ours[key]:.4f} | {all_} | {variants[0][1] / ours[key]:.2f} |")


if __name__ == "__main__":
    main()
