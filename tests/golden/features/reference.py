"""Features of PyTorch's InceptionV3 (as FID uses it) and DINOv2, for tests/features.rs.

Weights and images are a function of a tensor's name and an element's number, the same here and in the test, so that only
what comes out has to be kept. Needs torch, torchvision, transformers and safetensors; nothing is downloaded.

    python reference.py                        # writes expected.safetensors beside this file: narrow networks
    python reference.py --full FOLDER          # networks of full size, each with its weights: for LANGEVIN_FEATURES
    python reference.py --time --threads 2     # images a second at full size
"""

import argparse
import math
import pathlib
import tempfile
import time

import numpy
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torchvision.models import inception
from transformers import Dinov2Config, Dinov2Model


def noise(name, count):
    """Numbers of 32 bits: a hash of the name and of each index."""
    seed = 0x811C9DC5
    for byte in name.encode():
        seed = (seed ^ byte) * 0x01000193 % 2**32
    x = numpy.arange(count, dtype=numpy.uint32) * numpy.uint32(0x9E3779B9) + numpy.uint32(seed)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        x = (x ^ (x >> numpy.uint32(shift))) * numpy.uint32(factor)
    return x


def weights(name, shape):
    u = noise(name, math.prod(shape)).astype(numpy.float64) / 2**31 - 1
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_var":
        u = 1 + 0.5 * u
    elif leaf == "lambda1":
        u = 0.5 + 0.25 * u
    elif leaf == "weight" and len(shape) == 1:
        u = 1 + 0.25 * u
    elif leaf == "weight":
        u = u * math.sqrt((6 if len(shape) == 4 else 3) / math.prod(shape[1:]))
    else:
        u = 0.25 * u
    return torch.tensor(u.reshape(shape), dtype=torch.float32)


def images(name, shape):
    """Bytes, NHWC: half slopes, half noise."""
    n, h, w, c = numpy.indices(shape)
    slopes = (w * (3 + n) + h * (5 + n) + c * 40) % 256
    return (slopes // 2 + (noise(name, math.prod(shape)) >> 25).reshape(shape)).astype(numpy.uint8)


def average(x):
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def largest(x):
    return F.max_pool2d(x, 3, stride=1, padding=1)


def chain(block, stem, x, count):
    for i in range(1, count + 1):
        x = getattr(block, f"{stem}_{i}")(x)
    return x


def inception_v3(stem=32):
    """torchvision's modules with the poolings of the network that FID uses; all widths in proportion to the stem's."""

    def conv(inputs, outputs, **how):
        scaled = inputs if inputs == 3 else inputs * stem // 32
        return inception.BasicConv2d(scaled, outputs * stem // 32, **how)

    class A(inception.InceptionA):
        def _forward(self, x):
            five, double = chain(self, "branch5x5", x, 2), chain(self, "branch3x3dbl", x, 3)
            return [self.branch1x1(x), five, double, self.branch_pool(average(x))]

    class C(inception.InceptionC):
        def _forward(self, x):
            seven, double = chain(self, "branch7x7", x, 3), chain(self, "branch7x7dbl", x, 5)
            return [self.branch1x1(x), seven, double, self.branch_pool(average(x))]

    class E(inception.InceptionE):
        pool = staticmethod(average)

        def _forward(self, x):
            three, double = self.branch3x3_1(x), chain(self, "branch3x3dbl", x, 2)
            ends = [self.branch3x3_2a(three), self.branch3x3_2b(three)]
            ends += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
            return [self.branch1x1(x), *ends, self.branch_pool(self.pool(x))]

    def scaled(block):
        return lambda *sizes, **how: block(*sizes, conv_block=conv, **how)

    blocks = [conv, *map(scaled, (A, inception.InceptionB, C, inception.InceptionD, E)), None]
    network = inception.Inception3(
        num_classes=1008, aux_logits=False, transform_input=False, inception_blocks=blocks, init_weights=False
    )
    network.Mixed_7c.pool = largest
    network.fc = torch.nn.Linear(2048 * stem // 32, 1008)
    caught = {}
    network.avgpool.register_forward_hook(lambda module, args, out: caught.update(features=out.flatten(1)))

    def run(x):
        x = F.interpolate(x / 255, size=(299, 299), mode="bilinear", align_corners=False)
        caught["logits"] = network(2 * x - 1)
        return dict(caught)

    return network, run


def dinov2(hidden=384, layers=12, heads=6, grid=37, **how):
    sizes = dict(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, image_size=14 * grid)
    network = Dinov2Model(Dinov2Config(**sizes, **how))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))

    def run(x):
        x = F.interpolate(x, size=(224, 224), mode="bicubic", align_corners=False, antialias=True)
        return dict(features=network((x / 255 - mean) / std).last_hidden_state[:, 0])

    return network, run


def fill(network, folder):
    """Gives a network its weights, by the names under which it saves itself; returns it ready to run."""
    if isinstance(network, Dinov2Model):
        # What is saved has the published names, which are not those of the modules.
        network.save_pretrained(folder)
        path = folder / "model.safetensors"
        with safe_open(path, "pt") as file:
            tensors = {name: weights(name, file.get_slice(name).get_shape()) for name in file.keys()}
        save_file(tensors, path, metadata={"format": "pt"})
        return Dinov2Model.from_pretrained(folder).eval()
    state = {name: weights(name, list(t.shape)) if t.ndim else t for name, t in network.state_dict().items()}
    network.load_state_dict(state)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "model.safetensors")
    return network.eval()


def build(make, folder, **how):
    network, run = make(**how)
    filled = fill(network, folder)
    if filled is not network:
        network.load_state_dict(filled.state_dict())
    network.eval()

    def features(name, shape):
        x = torch.tensor(images(name, shape), dtype=torch.float32).permute(0, 3, 1, 2).contiguous()
        with torch.no_grad():
            return run(x.expand(-1, 3, -1, -1).contiguous())

    return features


SETS = {"rgb": (2, 20, 24, 3), "grey": (1, 32, 32, 1), "large": (1, 320, 310, 3)}
NARROW = {
    "inception": (inception_v3, dict(stem=2)),
    "dinov2": (dinov2, dict(hidden=128, layers=2, heads=2, grid=5)),
    "dinov2_swiglu": (dinov2, dict(hidden=64, layers=2, heads=1, grid=16, use_swiglu_ffn=True, qkv_bias=False)),
}
FULL = {"inception": (inception_v3, {}), "dinov2-small": (dinov2, {})}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", type=pathlib.Path)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    opts = parser.parse_args()
    torch.set_num_threads(opts.threads)
    torch.manual_seed(0)

    if opts.time:
        for name, (make, how) in FULL.items():
            network, run = make(**how)
            network.eval()
            x = torch.rand(opts.batch, 3, 32, 32) * 255
            with torch.no_grad():
                run(x)
                times = []
                for _ in range(5):
                    start = time.perf_counter()
                    run(x)
                    times.append(time.perf_counter() - start)
            print(f"{name}: {opts.batch / min(times):.2f} images a second, the best of 5")
        return

    if opts.full:
        for name, (make, how) in FULL.items():
            features = build(make, opts.full / name / "model", **how)
            rgb = {f"rgb.{key}": value.contiguous() for key, value in features("rgb", SETS["rgb"]).items()}
            save_file(rgb, opts.full / name / "expected.safetensors")
        return

    expected = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (make, how) in NARROW.items():
            features = build(make, pathlib.Path(folder) / name, **how)
            for images_name, shape in SETS.items():
                for key, value in features(images_name, shape).items():
                    if key == "features" or images_name == "rgb":
                        expected[f"{name}.{images_name}.{key}"] = value.contiguous()
    save_file(expected, pathlib.Path(__file__).with_name("expected.safetensors"))


if __name__ == "__main__":
    main()
