"""Keys of a vision transformer's last block: our extractor against the plain way.

The plain way is that of the published MaskCut code: run the whole model with ordinary attention, keep the last block's projections by
a forward hook. Both sides run in turn in one process on the same images, with the same random weights.

Promises, on a CPU, ViT-S/8 at 480x480 pixels (3600 patches):
* at least 1.5 times as fast;
* at most a quarter of the plain way's peak memory above what the loaded model takes;
* the same keys to 1e-3 of their largest value, where the position embedding is resized in the same way.

    python benchmarks/features.py [--arch dino_vits8] [--size 480] [--num-images 1] [--repeats 3] [--clock cpu]

Exits with status 1 when a promise is missed. The last line holds the figures as JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timm
import torch
from u2seg.features.vit import TimmViT, resize_position_embedding
from u2seg.features.vit_weights import ARCHITECTURES

MIN_SPEEDUP, MAX_MEMORY_RATIO, MAX_DIFFERENCE = 1.5, 0.25, 1e-3


def write_random_weights(arch: str, path: Path) -> None:
    """Writes weights in the authors' format: timm's random initialization (the names are the same for DINO)."""
    torch.manual_seed(0)
    torch.save(timm.create_model(ARCHITECTURES[arch].timm_name, num_classes=0).state_dict(), path)


class PlainKeys:
    """The whole model, attention maps and all; keys by a hook."""

    def __init__(self, arch: str, weights: Path, size: int):
        state = torch.load(weights, weights_only=True)
        self.model = timm.create_model(ARCHITECTURES[arch].timm_name, num_classes=0, img_size=size).eval()
        grid = size // self.model.patch_embed.patch_size[0]
        positions = state["pos_embed"]
        resized = resize_position_embedding(positions[:, 1:], (grid, grid))
        self.model.load_state_dict({**state, "pos_embed": torch.cat([positions[:, :1], resized], dim=1)})
        for block in self.model.blocks:
            block.attn.fused_attn = False
        self.model.blocks[-1].attn.qkv.register_forward_hook(self._keep)

    def _keep(self, module, inputs, output):
        self.qkv = output

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the last block's keys, (B, C, patches)."""
        mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        self.model.forward_features((images - mean) / std)
        return self.qkv[:, 1:].chunk(3, dim=-1)[1].transpose(1, 2)


def build(side: str, arch: str, weights: Path, size: int):
    if side == "plain":
        return PlainKeys(arch, weights, size)
    return TimmViT(arch=arch, weights=str(weights), image_size=(size, size)).eval()


def resident(field: str) -> int:
    """Returns VmRSS (now) or VmHWM (peak) of this process in bytes; Linux."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


@torch.no_grad()
def peak_memory(side: str, args) -> None:
    """Prints the bytes by which one forward pass raises the process's peak; run in a process of its own."""
    model = build(side, args.arch, Path(args.weights), args.size)
    images = torch.rand(args.num_images, 3, args.size, args.size)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far; getrusage's would be the parent's
    before = resident("VmRSS")
    model(images)
    print(resident("VmHWM") - before)


def measured_memory(side: str, args, weights: Path) -> int:
    command = [sys.executable, __file__, "--memory-of", side, "--weights", str(weights), "--arch", args.arch]
    command += ["--size", str(args.size), "--num-images", str(args.num_images)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@torch.no_grad()
def compare(args, weights: Path) -> dict:
    sides = {side: build(side, args.arch, weights, args.size) for side in ("plain", "ours")}
    images = torch.rand(args.num_images, 3, args.size, args.size)
    times = {side: [] for side in sides}
    keys = {}
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    for _ in range(args.repeats):
        for side, model in sides.items():
            start = clock()
            keys[side] = model(images).flatten(2)
            times[side].append(clock() - start)
    del sides
    difference = float((keys["plain"] - keys["ours"]).abs().max() / keys["plain"].abs().max())
    memory = {side: measured_memory(side, args, weights) for side in times}
    seconds = {side: min(values) / args.num_images for side, values in times.items()}
    return {
        "arch": args.arch,
        "size": args.size,
        "images": args.num_images,
        "clock": args.clock,
        "threads": torch.get_num_threads(),
        "seconds_per_image": seconds,
        "speedup": seconds["plain"] / seconds["ours"],
        "peak_bytes": memory,
        "memory_ratio": memory["ours"] / memory["plain"],
        "difference": difference,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="dino_vits8", choices=[a for a in ARCHITECTURES if a.startswith("dino_")])
    parser.add_argument("--size", type=int, default=480)
    parser.add_argument("--num-images", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--clock",
        default="cpu",
        choices=["cpu", "wall"],
        help="on a shared machine the wall clock measures the neighbors",
    )
    parser.add_argument("--memory-of", choices=["plain", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        peak_memory(args.memory_of, args)
        return 0
    with tempfile.TemporaryDirectory() as directory:
        weights = Path(directory) / "weights.pth"
        write_random_weights(args.arch, weights)
        figures = compare(args, weights)
    print(f"{'':8}{'s/image':>12}{'peak MiB':>12}")
    for side in ("plain", "ours"):
        print(f"{side:8}{figures['seconds_per_image'][side]:12.2f}{figures['peak_bytes'][side] / 2**20:12.0f}")
    promises = {
        f"at least {MIN_SPEEDUP} times as fast": figures["speedup"] >= MIN_SPEEDUP,
        f"at most {MAX_MEMORY_RATIO} of the peak memory": figures["memory_ratio"] <= MAX_MEMORY_RATIO,
        f"the same keys to {MAX_DIFFERENCE}": figures["difference"] <= MAX_DIFFERENCE,
    }
    for promise, kept in promises.items():
        print(f"{'kept  ' if kept else 'MISSED'} {promise}")
    print(json.dumps(figures))
    return 0 if all(promises.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
