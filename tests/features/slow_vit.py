"""The published vision transformers once more, written out in float64 from their papers: slow, obvious, independent of timm."""

import math

import torch


def authors_state_dict(family, *, patch_size, positions, dim=384, depth=12, registers=0, swiglu=False, seed=0):
    """Returns random weights with the names and shapes of the authors' files (ViT-S unless told otherwise)."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape, scale=0.05, mean=0.0):
        return mean + scale * torch.randn(shape, generator=generator)

    state = {"cls_token": random(1, 1, dim), "patch_embed.proj.weight": random(dim, 3, patch_size, patch_size)}
    state["patch_embed.proj.bias"] = random(dim)
    if family != "dinov3":
        state["pos_embed"] = random(1, positions + 1, dim, scale=0.5)
    if family != "dino":
        state["mask_token"] = random(1, dim)
    if registers:
        state["register_tokens" if family == "dinov2" else "storage_tokens"] = random(1, registers, dim)
    if family == "dinov3":
        state["rope_embed.periods"] = random(dim // 6 // 4)
    for index in range(depth):
        block = f"blocks.{index}."
        for norm in ("norm1", "norm2"):
            state[f"{block}{norm}.weight"] = random(dim, mean=1.0)
            state[f"{block}{norm}.bias"] = random(dim)
        state[f"{block}attn.qkv.weight"] = random(3 * dim, dim, scale=0.08)
        state[f"{block}attn.qkv.bias"] = random(3 * dim)
        if family == "dinov3":
            state[f"{block}attn.qkv.bias"][dim : 2 * dim] = 0
            state[f"{block}attn.qkv.bias_mask"] = torch.full((3 * dim,), math.nan)
        state[f"{block}attn.proj.weight"] = random(dim, dim)
        state[f"{block}attn.proj.bias"] = random(dim)
        if family != "dino":
            state[f"{block}ls1.gamma"] = random(dim, mean=0.5)
            state[f"{block}ls2.gamma"] = random(dim, mean=0.5)
        layers = {"fc1": (4 * dim, dim), "fc2": (dim, 4 * dim)}
        if swiglu:
            hidden = 4 * dim  # the authors' ratio 6, of which SwiGLU keeps two thirds
            layers = {"w1": (hidden, dim), "w2": (hidden, dim), "w3": (dim, hidden)}
        for name, shape in layers.items():
            state[f"{block}mlp.{name}.weight"] = random(*shape, scale=0.03)
            state[f"{block}mlp.{name}.bias"] = random(shape[0])
    state["norm.weight"] = random(dim, mean=1.0)
    state["norm.bias"] = random(dim)
    return state


def cubic(distance):
    """The cubic convolution kernel with a = -0.75 (Keys, 1981)."""
    a, t = -0.75, abs(distance)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def resize_matrix(size, learned, step):
    """Returns the (size, learned) matrix of a bicubic resize that samples at (i + 0.5) * step - 0.5, borders repeated."""
    matrix = torch.zeros(size, learned, dtype=torch.float64)
    for i in range(size):
        center = (i + 0.5) * step - 0.5
        for tap in range(math.floor(center) - 1, math.floor(center) + 3):
            matrix[i, min(max(tap, 0), learned - 1)] += cubic(center - tap)
    return matrix


def positions_of(state, rows, columns, offset):
    """Returns the CLS token's position and those of the patches, resized as the authors do."""
    learned = state["pos_embed"].double()
    side = math.isqrt(learned.shape[1] - 1)
    grid = learned[0, 1:].reshape(side, side, -1)
    if (rows, columns) != (side, side):
        vertical = resize_matrix(rows, side, side / (rows + offset))
        horizontal = resize_matrix(columns, side, side / (columns + offset))
        grid = torch.einsum("ry,cx,yxd->rcd", vertical, horizontal, grid)
    return learned[:, :1], grid.reshape(1, rows * columns, -1)


def layer_norm(x, weight, bias, eps):
    centered = x - x.mean(-1, keepdim=True)
    return centered / (centered.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def rotary_angles(rows, columns, head_dim):
    """DINOv3's: coordinates in -1..1, periods 100^(0 .. 1), first half of the pairs for y, second for x; (patches, head_dim)."""
    pairs = head_dim // 4
    periods = 100.0 ** (torch.arange(pairs, dtype=torch.float64) / pairs)
    y = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows * 2 - 1
    x = (torch.arange(columns, dtype=torch.float64) + 0.5) / columns * 2 - 1
    angles = [torch.cat([2 * math.pi * a / periods, 2 * math.pi * b / periods]) for a in y for b in x]
    return torch.stack(angles).repeat(1, 2)


def rotate(heads, angles, num_prefix):
    """Rotates the patches' vectors (B, heads, tokens, head_dim); pair i is (i, i + head_dim / 2)."""
    prefix, patches = heads[:, :, :num_prefix], heads[:, :, num_prefix:]
    half = patches.shape[-1] // 2
    turned = torch.cat([-patches[..., half:], patches[..., :half]], dim=-1)
    return torch.cat([prefix, patches * angles.cos() + turned * angles.sin()], dim=2)


class SlowViT:
    """Runs one image batch and keeps everything: q, k, v and output of every block, and the normalized CLS token."""

    def __init__(self, state, family, *, patch_size, heads=6, offset=0.1):
        self.state = {key: value.double() for key, value in state.items()}
        self.family, self.patch_size, self.heads, self.offset = family, patch_size, heads, offset
        self.eps = 1e-5 if family == "dinov3" else 1e-6

    def __call__(self, images):
        s, p = self.state, self.patch_size
        mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1)
        pixels = (images.double() - mean) / std
        rows, columns = images.shape[2] // p, images.shape[3] // p
        weight = s["patch_embed.proj.weight"].flatten(1)
        patches = [
            pixels[:, :, r * p : (r + 1) * p, c * p : (c + 1) * p].flatten(1) @ weight.T
            for r in range(rows)
            for c in range(columns)
        ]
        x = torch.stack(patches, dim=1) + s["patch_embed.proj.bias"]
        prefix = [s["cls_token"]]
        self.angles = None
        if self.family == "dinov3":
            self.angles = rotary_angles(rows, columns, x.shape[-1] // self.heads)
        else:
            cls_position, patch_positions = positions_of(s, rows, columns, self.offset)
            x = x + patch_positions
            prefix = [s["cls_token"] + cls_position]
        prefix += [s[name] for name in ("register_tokens", "storage_tokens") if name in s]
        x = torch.cat([token.expand(len(x), -1, -1) for token in prefix] + [x], dim=1)
        self.num_prefix = x.shape[1] - rows * columns
        self.grid = rows, columns
        self.blocks = []
        depth = 1 + max(int(key.split(".")[1]) for key in s if key.startswith("blocks."))
        for index in range(depth):
            x = self._block(x, f"blocks.{index}.")
        self.cls = layer_norm(x, s["norm.weight"], s["norm.bias"], self.eps)[:, 0]
        return self

    def feature_map(self, block, facet):
        patches = self.blocks[block][facet][:, self.num_prefix :]
        return patches.transpose(1, 2).reshape(len(patches), -1, *self.grid)

    def _block(self, x, name):
        s = self.state
        qkv = layer_norm(x, s[f"{name}norm1.weight"], s[f"{name}norm1.bias"], self.eps)
        q, k, v = (qkv @ s[f"{name}attn.qkv.weight"].T + s[f"{name}attn.qkv.bias"]).chunk(3, dim=-1)
        kept = {"query": q, "key": k, "value": v}
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        if self.angles is not None:
            q, k = rotate(q, self.angles, self.num_prefix), rotate(k, self.angles, self.num_prefix)
        attention = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
        mixed = (attention @ v).transpose(1, 2).flatten(2)
        x = x + (mixed @ s[f"{name}attn.proj.weight"].T + s[f"{name}attn.proj.bias"]) * s.get(f"{name}ls1.gamma", 1.0)
        y = layer_norm(x, s[f"{name}norm2.weight"], s[f"{name}norm2.bias"], self.eps)
        x = x + self._mlp(y, f"{name}mlp.") * s.get(f"{name}ls2.gamma", 1.0)
        self.blocks.append({**kept, "token": x})
        return x

    def _mlp(self, y, name):
        def linear(layer, inputs):
            return inputs @ self.state[f"{name}{layer}.weight"].T + self.state[f"{name}{layer}.bias"]

        if f"{name}w1.weight" in self.state:
            gate = linear("w1", y)
            return linear("w3", gate * torch.sigmoid(gate) * linear("w2", y))
        hidden = linear("fc1", y)
        return linear("fc2", 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2))))
