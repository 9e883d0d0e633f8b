"""Time PyTorch + diffusers on the CPU for the model shapes that langevin's own benchmarks use.

Each case runs in a process of its own: float32, a fixed number of threads, one or more
warm-up calls, then the median of a few timed calls. Peak memory is the process's ru_maxrss
less its resident size right after the imports, so it counts weights, activations, gradients
and optimizer state, but not the libraries.

    unet        UNet2DModel in the shape of google/ddpm-cifar10-32, forward without gradients
    dit         DiTTransformer2DModel S/2 on 4x32x32 latents, forward without gradients
    unet-train  the same UNet: forward, MSE to noise, backward, AdamW step
    sd15        UNet2DConditionModel in the shape of Stable Diffusion 1.5, 4x64x64, 77 tokens

Needs torch and diffusers. The weights are random; nothing is downloaded.

    python pytorch_cpu.py                         # every case, as a table
    python pytorch_cpu.py --json --only unet:8    # one case, as JSON lines
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

CASES = [("unet", 1), ("unet", 8), ("dit", 1), ("dit", 8), ("unet-train", 8), ("sd15", 1)]


def resident_mib():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def build(case, batch):
    """Returns a function of no arguments that does one timed unit of work."""
    import torch
    from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel

    t = torch.full((batch,), 500)
    if case in ("unet", "unet-train"):
        model = UNet2DModel(
            sample_size=32,
            block_out_channels=(128, 256, 256, 256),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            norm_eps=1e-6,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            attention_head_dim=None,
        )
        x = torch.randn(batch, 3, 32, 32)
        args = dict(sample=x, timestep=t)
    elif case == "dit":
        model = DiTTransformer2DModel(
            num_attention_heads=6,
            attention_head_dim=64,
            in_channels=4,
            out_channels=8,
            num_layers=12,
            sample_size=32,
            patch_size=2,
            num_embeds_ada_norm=1000,
        )
        x = torch.randn(batch, 4, 32, 32)
        args = dict(hidden_states=x, timestep=t, class_labels=torch.full((batch,), 7))
    elif case == "sd15":
        model = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        x = torch.randn(batch, 4, 64, 64)
        args = dict(sample=x, timestep=t, encoder_hidden_states=torch.randn(batch, 77, 768))
    else:
        raise ValueError(case)

    if case != "unet-train":
        model.eval()

        def forward():
            with torch.no_grad():
                model(**args)

        return forward

    model.train()
    noise = torch.randn_like(x)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step():
        loss = torch.nn.functional.mse_loss(model(**args).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def measure(case, batch, threads, runs, seconds):
    """Runs at least three timed calls, at most `runs`, and stops after `seconds`."""
    import torch
    import diffusers
    from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel  # noqa: F401

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    idle = resident_mib()
    work = build(case, batch)
    for _ in range(2):
        work()
    times, start = [], time.perf_counter()
    while len(times) < 3 or (len(times) < runs and time.perf_counter() - start < seconds):
        began = time.perf_counter()
        work()
        times.append((time.perf_counter() - began) * 1e3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return dict(
        case=case,
        batch=batch,
        ms_median=round(statistics.median(times), 2),
        ms_min=round(min(times), 2),
        peak_rss_mb_over_idle=round(peak - idle, 1),
        idle_rss_mb=round(idle, 1),
        runs=len(times),
        threads=threads,
        torch=torch.__version__,
        diffusers=diffusers.__version__,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", metavar="CASE[:BATCH]", help="repeatable")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=15, help="most timed calls per case")
    parser.add_argument("--seconds", type=float, default=20.0, help="timed seconds per case")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--child", metavar="CASE:BATCH", help=argparse.SUPPRESS)
    opts = parser.parse_args()

    if opts.child:
        case, batch = opts.child.split(":")
        row = measure(case, int(batch), opts.threads, opts.runs, opts.seconds)
        print(json.dumps(row), flush=True)
        return

    known = {c for c, _ in CASES} | {f"{c}:{b}" for c, b in CASES}
    for name in opts.only or []:
        if name not in known:
            parser.error(f"no case {name!r}; there are {', '.join(f'{c}:{b}' for c, b in CASES)}")
    if not opts.json:
        print(f"{'case':<12}{'batch':>6}{'median ms':>12}{'min ms':>12}{'peak MiB':>12}{'runs':>6}")
    for case, batch in CASES:
        if opts.only and not {case, f"{case}:{batch}"} & set(opts.only):
            continue
        command = [sys.executable, os.path.abspath(__file__), "--child", f"{case}:{batch}"]
        for flag in ("threads", "runs", "seconds"):
            command += [f"--{flag}", str(getattr(opts, flag))]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        if opts.json:
            print(json.dumps(row), flush=True)
        else:
            print(
                f"{row['case']:<12}{row['batch']:>6}{row['ms_median']:>12.1f}{row['ms_min']:>12.1f}"
                f"{row['peak_rss_mb_over_idle']:>12.1f}{row['runs']:>6}",
                flush=True,
            )


if __name__ == "__main__":
    main()
