"""PyTorch on the same GPU, beside `langevin kernels bench --model peers` and `langevin bench`: one line of JSON a measurement.

    python3 benches/peers/pytorch_gpu.py [PART[:MODE[:BATCH]] ...]

Products by cuBLAS, convolutions by cuDNN (channels last), attention by every back end of SDPA, group norm + SiLU and layer norm + modulation eager and
compiled; networks and a training step (of diffusers, if it is installed) eager, compiled with CUDA graphs, and compiled with mode="max-autotune". Times are
medians by CUDA events, caches cold before every run of a kernel. Compilers' caches are kept, so that a second run measures sooner.

Networks take minutes to compile, one core each. With LANGEVIN_TURNS=FOLDER several processes compile at the same time: each says FOLDER/ready.PID when its
warm-up is done, waits for FOLDER/go, and then measures alone.
"""
import contextlib
import fcntl
import json
import os
import pathlib
import statistics
import sys
import time

import torch
import torch._inductor.config
import torch._inductor.runtime.benchmarking
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

DEVICE, BF16 = "cuda", torch.bfloat16
FLUSH = torch.empty(128 << 18, dtype=torch.int32, device=DEVICE)


@contextlib.contextmanager
def turn(what):
    """What is measured within has the GPU alone among the processes that share LANGEVIN_TURNS."""
    folder = os.environ.get("LANGEVIN_TURNS")
    if not folder:
        yield
        return
    if what == "measure":
        pathlib.Path(folder, f"ready.{os.getpid()}").touch()
        while not os.path.exists(f"{folder}/go"):
            time.sleep(0.05)
    with open(f"{folder}/{what}", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def tune_in_turns():
    """Candidates that max-autotune times do not disturb each other either."""
    benchmarker = type(torch._inductor.runtime.benchmarking.benchmarker)
    time_one = benchmarker.benchmark_gpu

    def timed(*args, **kwargs):
        with turn("tune"):
            return time_one(*args, **kwargs)

    benchmarker.benchmark_gpu = timed


def milliseconds(run, runs=20):
    """Median time of a run, its caches cold."""
    for _ in range(4):
        run()
    times = []
    torch.cuda.synchronize()
    with turn("measure"):
        for _ in range(runs):
            FLUSH.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def report(name, shape, run, flops=0, size=0, **more):
    """Prints a measurement; `size` are minimal bytes. What fails is told and passed over."""
    try:
        ms = milliseconds(run)
    except Exception as error:  # noqa: BLE001 - a back end that does not take a shape
        print(f"{name} {shape}: {error}", file=sys.stderr)
        return
    line = {"peer": "pytorch", "version": torch.__version__, "what": name, "shape": shape, "ms": ms, **more}
    if flops:
        line["tflops"] = flops / ms / 1e9
    if size:
        line["gbps"] = size / ms / 1e6
    print(json.dumps(line), flush=True)


def tensor(*shape):
    return torch.randn(*shape, device=DEVICE, dtype=BF16)


def products():
    for m, k, n in [(4096, 4096, 4096), (8192, 8192, 8192), (1024, 1152, 3456), (1024, 1152, 4608), (1024, 4608, 1152), (16384, 320, 2560)]:
        a, b = tensor(m, k), tensor(k, n)
        report("matmul bf16", [m, k, n], lambda: a @ b, flops=2 * m * k * n)


def convolutions():
    shapes = [(4, 64, 320, 320), (4, 32, 640, 640), (4, 16, 1280, 1280), (4, 8, 1280, 1280), (64, 32, 128, 128), (64, 32, 256, 256), (64, 16, 256, 256)]
    for batch, side, c, n in shapes:
        x = tensor(batch, c, side, side).to(memory_format=torch.channels_last)
        w = tensor(n, c, 3, 3).to(memory_format=torch.channels_last)
        dy = tensor(batch, n, side, side).to(memory_format=torch.channels_last)
        flops, shape = 2 * batch * side * side * c * n * 9, [batch, side, side, c, n]
        report("conv3x3 bf16 forward", shape, lambda: F.conv2d(x, w, padding=1), flops=flops)
        grad = lambda mask: torch.ops.aten.convolution_backward(dy, x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask)
        report("conv3x3 bf16 data gradient", shape, lambda: grad([True, False, False]), flops=flops)
        report("conv3x3 bf16 weight gradient", shape, lambda: grad([False, True, False]), flops=flops)


def attention():
    shapes = [(4, 8, 4096, 40), (4, 8, 1024, 80), (4, 8, 256, 160), (4, 10, 4096, 64), (4, 16, 256, 72), (2, 16, 4096, 128), (4, 4, 256, 256)]
    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]
    for batch, heads, tokens, size in shapes:
        q, k, v = (tensor(batch, heads, tokens, size).requires_grad_() for _ in range(3))
        flops = 4 * batch * heads * tokens * tokens * size
        for backend in backends:
            with sdpa_kernel(backend):
                shape = [batch, heads, tokens, size]
                run = lambda: F.scaled_dot_product_attention(q, k, v)
                report("attention bf16 forward", shape, run, flops=flops, backend=backend.name)

                def both():
                    y = F.scaled_dot_product_attention(q, k, v)
                    torch.autograd.grad(y, (q, k, v), torch.ones_like(y))

                report("attention bf16 forward and backward", shape, both, flops=3.5 * flops, backend=backend.name)


def norms():
    group = lambda x, g, b: F.silu(F.group_norm(x, 32, g, b))
    layer = lambda x, scale, shift: F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift
    for mode, compile_ in [("eager", lambda f: f), ("compiled", torch.compile)]:
        group_of, layer_of = compile_(group), compile_(layer)
        for batch, side, c in [(4, 64, 320), (4, 32, 640), (64, 32, 128)]:
            x = tensor(batch, c, side, side).to(memory_format=torch.channels_last)
            g, b = tensor(c), tensor(c)
            report("group norm + silu bf16", [batch, side, side, c], lambda: group_of(x, g, b), size=4 * x.numel(), mode=mode)
        x, scale, shift = tensor(64, 256, 1152), tensor(64, 1, 1152), tensor(64, 1, 1152)
        report("layer norm + modulation bf16", [64, 256, 1152], lambda: layer_of(x, scale, shift), size=4 * x.numel(), mode=mode)


# What `langevin bench` calls them; the batches that both run.
NETWORKS = {"ddpm-cifar10": (1, 64), "dit-xl-2": (1, 64), "sd15": (1, 4)}
COMPILED = ["reduce-overhead", "max-autotune"]
# Tuning Triton's convolutions takes many minutes: products are tuned, convolutions are cuDNN's.
torch._inductor.config.max_autotune_conv_backends = "ATEN"


def network(name):
    """A network, channels last, and its inputs for a batch."""
    from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel

    half = lambda b: torch.full((b,), 500, device=DEVICE)
    if name == "ddpm-cifar10":
        down, up = "DownBlock2D", "UpBlock2D"
        made = UNet2DModel(sample_size=32, block_out_channels=(128, 256, 256, 256), layers_per_block=2, downsample_padding=0, attention_head_dim=None,
                           down_block_types=(down, "AttnDownBlock2D", down, down), up_block_types=(up, up, "AttnUpBlock2D", up))
        inputs = lambda b: (tensor(b, 3, 32, 32), half(b))
    elif name == "sd15":
        made = UNet2DConditionModel(sample_size=64, block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8)
        inputs = lambda b: (tensor(b, 4, 64, 64), half(b), tensor(b, 77, 768))
    else:
        made = DiTTransformer2DModel(num_layers=28, num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, patch_size=2,
                                     sample_size=32, num_embeds_ada_norm=1000)
        inputs = lambda b: (tensor(b, 4, 32, 32), half(b), torch.zeros(b, dtype=torch.long, device=DEVICE))
    return made.to(DEVICE).to(memory_format=torch.channels_last), inputs


def forward(name, modes, batches):
    """A network's forward in bf16."""
    made, inputs = network(name)
    made = made.to(BF16).eval()
    for mode in modes:
        torch.compiler.reset()
        run = made if mode == "eager" else torch.compile(made, mode=mode, dynamic=False)
        for batch in batches or NETWORKS[name]:
            given = inputs(batch)
            with torch.no_grad():
                report(f"{name} forward bf16", [batch], lambda: run(*given), mode=mode)


class Block(torch.nn.Module):
    """A block of DDPM++ (Song et al. 2021; Karras et al. 2022, table 7): norm, SiLU and convolution twice, an embedding between, attention if asked for."""

    def __init__(self, inputs, outputs, embedding=512, change=None, attention=False, dropout=0.13):
        super().__init__()
        norm = lambda c: torch.nn.GroupNorm(min(32, c // 4), c, eps=1e-6)
        self.change, self.dropout = change, dropout
        self.norm0, self.norm1 = norm(inputs), norm(outputs)
        self.conv0, self.conv1 = torch.nn.Conv2d(inputs, outputs, 3, padding=1), torch.nn.Conv2d(outputs, outputs, 3, padding=1)
        self.affine = torch.nn.Linear(embedding, outputs)
        self.skip = torch.nn.Conv2d(inputs, outputs, 1) if change or inputs != outputs else torch.nn.Identity()
        if attention:
            self.norm2, self.qkv, self.proj = norm(outputs), torch.nn.Conv2d(outputs, 3 * outputs, 1), torch.nn.Conv2d(outputs, outputs, 1)
        self.attention = attention

    def resample(self, x):
        return {None: lambda: x, "down": lambda: F.avg_pool2d(x, 2), "up": lambda: F.interpolate(x, scale_factor=2)}[self.change]()

    def forward(self, x, embedding):
        h = self.conv0(self.resample(F.silu(self.norm0(x)))) + self.affine(embedding)[:, :, None, None]
        h = self.conv1(F.dropout(F.silu(self.norm1(h)), self.dropout, self.training))
        x = (h + self.skip(self.resample(x))) * 0.5**0.5
        if self.attention:
            q, k, v = (part.flatten(2).transpose(1, 2)[:, None] for part in self.qkv(self.norm2(x)).chunk(3, 1))
            h = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
            x = (self.proj(h) + x) * 0.5**0.5
        return x


class DdpmPlusPlus(torch.nn.Module):
    """EDM's DDPM++ for CIFAR-10 with its preconditioning: 55.7 M parameters (Karras et al. 2022, tables 1 and 7)."""

    def __init__(self, c=128, mults=(2, 2, 2), blocks=4):
        super().__init__()
        self.map0, self.map1 = torch.nn.Linear(c, 4 * c), torch.nn.Linear(4 * c, 4 * c)
        self.stem = torch.nn.Conv2d(3, c, 3, padding=1)
        self.encoder, self.decoder, skips, x = torch.nn.ModuleList(), torch.nn.ModuleList(), [c], c
        for level, mult in enumerate(mults):
            for outputs, change in ([(x, "down")] if level else []) + [(c * mult, None)] * blocks:
                self.encoder.append(Block(x, outputs, change=change, attention=level == 1 and change is None))
                skips.append(x := outputs)
        for level in reversed(range(len(mults))):
            for change, attention in [("up", False)] if level < len(mults) - 1 else [(None, True), (None, False)]:
                self.decoder.append(Block(x, x, change=change, attention=attention))
            for i in range(blocks + 1):
                block = Block(x + skips.pop(), c * mults[level], attention=level == 1 and i == blocks)
                block.joins, x = True, c * mults[level]
                self.decoder.append(block)
        self.norm, self.last = torch.nn.GroupNorm(32, x, eps=1e-6), torch.nn.Conv2d(x, 3, 3, padding=1)

    def forward(self, x, sigma):
        c_skip, c_out, c_in = 0.25 / (sigma**2 + 0.25), 0.5 * sigma / (sigma**2 + 0.25) ** 0.5, 1 / (sigma**2 + 0.25) ** 0.5
        angles = sigma.log().flatten()[:, None] / 4 * 10000 ** (-torch.arange(64, device=x.device) / 63)
        embedding = F.silu(self.map1(F.silu(self.map0(torch.cat([angles.sin(), angles.cos()], 1)))))
        h = self.stem(c_in * x)
        skips = [h]
        for block in self.encoder:
            skips.append(h := block(h, embedding))
        for block in self.decoder:
            h = block(torch.cat([h, skips.pop()], 1) if getattr(block, "joins", False) else h, embedding)
        return c_skip * x + c_out * self.last(F.silu(self.norm(h)))


def training(name, modes):
    """A step of training: autocast to bf16, AdamW."""
    batch = {"ddpm-cifar10": 64, "edm-ddpmpp": 128}[name]
    x = torch.randn(batch, 3, 32, 32, device=DEVICE).to(memory_format=torch.channels_last)
    if name == "ddpm-cifar10":
        made, t = network(name)[0], torch.full((batch,), 500, device=DEVICE)
        output = lambda run: run(x, t).sample
    else:
        made, sigma = DdpmPlusPlus().to(DEVICE).to(memory_format=torch.channels_last), torch.full((batch, 1, 1, 1), 1.5, device=DEVICE)
        output = lambda run: run(x, sigma)
    print(json.dumps({"peer": "pytorch", "what": f"{name} parameters", "count": sum(p.numel() for p in made.parameters())}), flush=True)
    optimizer = torch.optim.AdamW(made.parameters(), fused=True)
    for mode in modes:
        torch.compiler.reset()
        run = made if mode == "eager" else torch.compile(made, mode=mode, dynamic=False)

        def step():
            with torch.autocast(DEVICE, BF16):
                loss = F.mse_loss(output(run), x)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        report(f"{name} training step", [batch], step, mode=mode)
        peak = {"peer": "pytorch", "what": f"peak memory of the training step of {name}", "mode": mode, "bytes": torch.cuda.max_memory_allocated()}
        print(json.dumps(peak), flush=True)


KERNELS = {"products": products, "convolutions": convolutions, "attention": attention, "norms": norms}
TRAINED = {"training-ddpm-cifar10": "ddpm-cifar10", "training-edm-ddpmpp": "edm-ddpmpp"}


def measure(part, mode=None, batch=None):
    """A part by its name; of a network all modes and batches, unless they are given."""
    modes = [mode] if mode else ["eager", *COMPILED]
    if part in KERNELS:
        KERNELS[part]()
    elif part in TRAINED:
        training(TRAINED[part], modes)
    else:
        forward(part, modes, [int(batch)] if batch else None)


if __name__ == "__main__":
    tune_in_turns()
    for given in sys.argv[1:] or [*KERNELS, *NETWORKS, *TRAINED]:
        try:
            measure(*given.split(":"))
        except ImportError as error:
            print(f"{given}: {error}", file=sys.stderr)
