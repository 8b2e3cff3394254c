"""Architectures for images, small and from configuration alone."""

import torch
import torch.nn.functional as F
from registry import Layers, architecture, normal
from torch import nn

IMAGE = (3, 8, 8)


def head(channels, classes=3):
    """Return global pooling and a linear classifier."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def cna(cin, cout, kernel=3, stride=1, groups=1, act=nn.ReLU, inplace=True):
    """Return convolution, batch norm with used statistics, and activation."""
    norm = nn.BatchNorm2d(cout)
    norm.running_mean.normal_(0, 0.1), norm.running_var.uniform_(0.5, 2)  # noqa: B018
    layers = [nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False), norm]
    return nn.Sequential(*layers, *([act(inplace=True) if inplace else act()] if act else []))


class Residual(nn.Module):
    """Sum of a branch and a skip, with an activation afterwards."""

    def __init__(self, branch, skip=None, act=None):
        super().__init__()
        self.branch, self.skip, self.act = branch, skip or nn.Identity(), act or nn.Identity()

    def forward(self, x):
        out = self.branch(x)
        out += self.skip(x)
        return self.act(out)


class SqueezeExcite(nn.Module):
    """Channel gates from global averages."""

    def __init__(self, c, gate=nn.Sigmoid):
        super().__init__()
        self.net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, 2, 1), nn.SiLU(True), nn.Conv2d(2, c, 1), gate())

    def forward(self, x):
        return x * self.net(x)


@architecture("LeNet-5", (1, 12, 12))
def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(4, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(54, 3)
    )


@architecture("AlexNet with local response norm", IMAGE)
def alexnet():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(True), nn.LocalResponseNorm(3), nn.MaxPool2d(3, 2),
        nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.ReLU(True), nn.Flatten(), nn.Dropout(0.5), nn.Linear(54, 3),
    )  # fmt: skip


@architecture("VGG-11 with batch norm", IMAGE)
def vgg():
    return nn.Sequential(
        cna(3, 4), nn.MaxPool2d(2), cna(4, 6), cna(6, 6), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 3)
    )


@architecture("ResNet-18 (basic blocks)", IMAGE)
def resnet_basic():
    block = Residual(nn.Sequential(cna(4, 4), cna(4, 4, act=None)), act=nn.ReLU(True))
    down = Residual(nn.Sequential(cna(4, 6, stride=2), cna(6, 6, act=None)), cna(4, 6, 1, 2, act=None), nn.ReLU(True))
    return nn.Sequential(cna(3, 4), nn.MaxPool2d(3, 2, 1), block, down, head(6))


@architecture("ResNet-50 (bottlenecks)", IMAGE)
def resnet_bottleneck():
    branch = nn.Sequential(cna(4, 3, 1), cna(3, 3, stride=2), cna(3, 8, 1, act=None))
    return nn.Sequential(cna(3, 4), Residual(branch, cna(4, 8, 1, 2, act=None), nn.ReLU(True)), head(8))


@architecture("Wide ResNet (pre-activation)", IMAGE)
def wide_resnet():
    branch = nn.Sequential(
        nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.Dropout(0.3), nn.Conv2d(6, 6, 1)
    )
    return nn.Sequential(nn.Conv2d(3, 6, 3), Residual(branch), head(6))


@architecture("ResNeXt", IMAGE)
def resnext():
    branch = nn.Sequential(cna(4, 8, 1), cna(8, 8, groups=4), cna(8, 4, 1, act=None))
    return nn.Sequential(cna(3, 4), Residual(branch, act=nn.ReLU(True)), head(4))


@architecture("DenseNet", IMAGE)
def densenet():
    def forward(m, x):
        found = [m.stem(x)]
        for layer in m.layers:
            found.append(layer(torch.cat(found, 1)))
        return m.head(torch.cat(found, 1))

    return Layers(forward, stem=cna(3, 4), layers=nn.ModuleList(cna(4 + 2 * i, 2) for i in range(3)), head=head(10))


@architecture("MobileNetV2 (inverted residuals)", IMAGE)
def mobilenet_v2():
    branch = nn.Sequential(cna(4, 8, 1, act=nn.ReLU6), cna(8, 8, groups=8, act=nn.ReLU6), cna(8, 4, 1, act=None))
    return nn.Sequential(cna(3, 4, act=nn.ReLU6), Residual(branch), head(4))


@architecture("MobileNetV3 (squeeze, hardswish)", IMAGE)
def mobilenet_v3():
    se = SqueezeExcite(8, nn.Hardsigmoid)
    branch = nn.Sequential(
        cna(4, 8, 1, act=nn.Hardswish), cna(8, 8, 5, groups=8, act=nn.Hardswish), se, cna(8, 4, 1, act=None)
    )
    return nn.Sequential(cna(3, 4, act=nn.Hardswish), Residual(branch), head(4))


@architecture("EfficientNet (MBConv)", IMAGE)
def efficientnet():
    branch = nn.Sequential(
        cna(4, 8, 1, act=nn.SiLU), cna(8, 8, groups=8, act=nn.SiLU), SqueezeExcite(8), cna(8, 4, 1, act=None)
    )
    return nn.Sequential(cna(3, 4, act=nn.SiLU), Residual(branch), head(4))


@architecture("ShuffleNetV2", IMAGE)
def shufflenet():
    def forward(m, x):
        a, b = m.stem(x).chunk(2, 1)
        y = torch.cat((a, m.branch(b)), 1)
        n, c, h, w = y.shape
        return m.head(y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w))

    return Layers(
        forward, stem=cna(3, 8), branch=nn.Sequential(cna(4, 4, 1), cna(4, 4, groups=4, act=None)), head=head(8)
    )


@architecture("SqueezeNet (fire)", IMAGE)
def squeezenet():
    def forward(m, x):
        s = m.squeeze(x).relu_()
        return m.head(torch.cat((F.relu(m.one(s)), F.relu(m.three(s), inplace=True)), 1))

    parts = {"squeeze": nn.Conv2d(3, 2, 1), "one": nn.Conv2d(2, 4, 1), "three": nn.Conv2d(2, 4, 3, padding=1)}
    return Layers(forward, **parts, head=head(8))


@architecture("GoogLeNet (inception)", IMAGE)
def inception():
    pool = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), cna(3, 2, 1))
    branches = nn.ModuleList(
        (cna(3, 2, 1), nn.Sequential(cna(3, 2, 1), cna(2, 3)), nn.Sequential(cna(3, 2, 1), cna(2, 2, 5)), pool)
    )
    return Layers(lambda m, x: m.head(torch.cat([b(x) for b in m.branches], 1)), branches=branches, head=head(9))


@architecture("RegNet", IMAGE)
def regnet():
    branch = nn.Sequential(cna(6, 6, 1), cna(6, 6, stride=2, groups=3), SqueezeExcite(6), cna(6, 6, 1, act=None))
    return nn.Sequential(cna(3, 6), Residual(branch, cna(6, 6, 1, 2, act=None), nn.ReLU(True)), head(6))


@architecture("MNASNet", IMAGE)
def mnasnet():
    separable = nn.Sequential(cna(4, 4, groups=4), cna(4, 4, 1, act=None))
    return nn.Sequential(
        cna(3, 4, stride=2),
        separable,
        Residual(nn.Sequential(cna(4, 8, 1), cna(8, 8, 5, groups=8), cna(8, 4, 1, act=None))),
        head(4),
    )


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over channels, as torchvision writes it."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@architecture("ConvNeXt", IMAGE)
def convnext():
    def forward(m, x):
        h = m.stem(x)
        y = m.mlp(m.depthwise(h).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return m.head(h + m.scale * y)

    mlp = nn.Sequential(nn.LayerNorm(4, eps=1e-6), nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
    stem = nn.Sequential(nn.Conv2d(3, 4, 2, 2), LayerNorm2d(4))
    return Layers(
        forward,
        stem=stem,
        depthwise=nn.Conv2d(4, 4, 7, padding=3, groups=4),
        mlp=mlp,
        scale=torch.full((4, 1, 1), 0.5),
        head=head(4),
    )


@architecture("ConvMixer", IMAGE)
def convmixer():
    depthwise = nn.Sequential(nn.Conv2d(4, 4, 5, groups=4, padding="same"), nn.GELU(), nn.BatchNorm2d(4))
    return nn.Sequential(
        nn.Conv2d(3, 4, 2, 2), nn.GELU(), nn.BatchNorm2d(4), Residual(depthwise), nn.Conv2d(4, 4, 1), nn.GELU(), head(4)
    )


@architecture("U-Net", IMAGE)
def unet():
    def forward(m, x):
        a = m.down(x)
        b = m.middle(F.max_pool2d(a, 2))
        up = F.interpolate(m.up(b), size=a.shape[2:], mode="bilinear", align_corners=False)
        return m.out(torch.cat((a, up), 1)).mean((2, 3))

    return Layers(forward, down=cna(3, 4), middle=cna(4, 6), up=nn.ConvTranspose2d(6, 4, 2, 2), out=nn.Conv2d(8, 2, 1))


@architecture("Feature pyramid with nearest upsampling", IMAGE)
def pyramid():
    def forward(m, x):
        a = m.a(x)
        b = m.b(a)
        merged = m.la(a) + F.interpolate(m.lb(b), scale_factor=2, mode="nearest")
        return torch.cat((merged.amax((2, 3)), m.lb(b).mean((2, 3))), 1)

    return Layers(forward, a=cna(3, 4), b=cna(4, 4, stride=2), la=nn.Conv2d(4, 2, 1), lb=nn.Conv2d(4, 2, 1))


@architecture("DeepLab (atrous pooling)", IMAGE)
def deeplab():
    branches = nn.ModuleList(nn.Conv2d(4, 2, 3, padding=r, dilation=r) for r in (1, 2, 3))
    return Layers(
        lambda m, x: m.head(torch.cat([b(m.stem(x)) for b in m.branches], 1).relu()),
        stem=cna(3, 4),
        branches=branches,
        head=head(6),
    )


@architecture("Vision transformer", IMAGE)
def vit():
    def forward(m, x):
        h = m.patch(x).flatten(2).transpose(1, 2)
        h = torch.cat((m.token.expand(len(x), -1, -1), h), 1) + m.place
        return m.head(m.blocks(h)[:, 0])

    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, "gelu", batch_first=True, norm_first=True)
    blocks = nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=False)
    return Layers(
        forward,
        patch=nn.Conv2d(3, 8, 4, 4),
        token=normal(1, 1, 8),
        place=normal(5, 8),
        blocks=blocks,
        head=nn.Linear(8, 3),
    )


@architecture("Swin (shifted windows)", IMAGE)
def swin():
    def forward(m, x):
        h = m.patch(x).permute(0, 2, 3, 1)  # [N, 4, 4, 8]
        for shift, qkv, out, bias in zip((0, 1), m.qkv, m.out, m.bias, strict=True):
            y = torch.roll(m.norm(h), (-shift, -shift), (1, 2))
            y = y.view(-1, 2, 2, 2, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 8)
            q, k, v = qkv(y).reshape(len(y), 4, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
            a = (q @ k.transpose(-2, -1) / 2 + bias[m.places]).softmax(-1)
            y = out((a @ v).transpose(1, 2).reshape(-1, 4, 8)).view(-1, 2, 2, 2, 2, 8).permute(0, 1, 3, 2, 4, 5)
            h = h + torch.roll(y.reshape(h.shape), (shift, shift), (1, 2))
        return m.head(h.mean((1, 2)))

    model = Layers(
        forward, patch=nn.Conv2d(3, 8, 2, 2), norm=nn.LayerNorm(8),
        qkv=nn.ModuleList(nn.Linear(8, 24) for _ in range(2)),
        out=nn.ModuleList(nn.Linear(8, 8) for _ in range(2)), head=nn.Linear(8, 3),
        bias=nn.ParameterList(normal(16) for _ in range(2)),
    )  # fmt: skip
    model.register_buffer("places", torch.arange(16).view(4, 4))
    return model


@architecture("MLP-Mixer", (4, 6))
def mixer():
    def forward(m, x):
        h = m.embed(x)
        h = h + m.tokens(m.n1(h).transpose(1, 2)).transpose(1, 2)
        return m.head((h + m.channels(m.n2(h))).mean(1))

    def two(width):
        return nn.Sequential(nn.Linear(width, 8), nn.GELU(), nn.Linear(8, width))

    return Layers(
        forward,
        embed=nn.Linear(6, 6),
        n1=nn.LayerNorm(6),
        n2=nn.LayerNorm(6),
        tokens=two(4),
        channels=two(6),
        head=nn.Linear(6, 3),
    )


@architecture("gMLP (spatial gating)", (4, 6))
def gmlp():
    def forward(m, x):
        u, v = F.gelu(m.inward(m.norm(x))).chunk(2, -1)
        return m.out(x + m.outward(u * m.spatial(m.gate(v).mT).mT)).mean(1)

    return Layers(
        forward,
        norm=nn.LayerNorm(6),
        inward=nn.Linear(6, 8),
        gate=nn.LayerNorm(4),
        spatial=nn.Linear(4, 4),
        outward=nn.Linear(4, 6),
        out=nn.Linear(6, 3),
    )


@architecture("PoolFormer", IMAGE)
def poolformer():
    def forward(m, x):
        h = m.stem(x)
        h = h + F.avg_pool2d(m.norm(h), 3, 1, 1, count_include_pad=False) - h
        return m.head(h + m.mlp(h))

    mlp = nn.Sequential(nn.GroupNorm(1, 4), nn.Conv2d(4, 8, 1), nn.GELU(), nn.Conv2d(8, 4, 1))
    return Layers(forward, stem=nn.Conv2d(3, 4, 2, 2), norm=nn.GroupNorm(1, 4), mlp=mlp, head=head(4))


@architecture("Deformable (grid_sample of learned offsets)", IMAGE)
def deformable():
    def forward(m, x):
        theta = m.place(x.flatten(1)).view(-1, 2, 3) * 0.1 + torch.eye(2, 3, dtype=x.dtype)
        grid = F.affine_grid(theta, [len(x), 3, 8, 8], align_corners=False)
        return m.head(m.conv(F.grid_sample(x, grid, align_corners=False)).relu())

    return Layers(forward, place=nn.Linear(192, 6), conv=nn.Conv2d(3, 4, 3), head=head(4))


@architecture("Involution", IMAGE)
def involution():
    def forward(m, x):
        h = m.stem(x)
        weight = m.span(h.mean((2, 3), keepdim=True).tanh()).view(-1, 1, 9, 1, 1)
        patches = F.unfold(h, 3, padding=1).view(len(x), 4, 9, 8, 8)
        return m.head((weight * patches).sum(2))

    return Layers(forward, stem=nn.Conv2d(3, 4, 1), span=nn.Conv2d(4, 9, 1), head=head(4))


@architecture("Capsules with routing", IMAGE)
def capsules():
    def squash(s):
        n = s.square().sum(-1, keepdim=True)
        return n / (1 + n) * s / (n + 1e-8).sqrt()

    def forward(m, x):
        u = squash(m.primary(x).view(len(x), -1, 4))
        votes = torch.einsum("nip,ijpq->nijq", u, m.weight[: u.shape[1]])
        b = torch.zeros(votes.shape[:3], dtype=x.dtype, device=x.device)
        for _ in range(3):
            v = squash((b.softmax(2)[..., None] * votes).sum(1))
            b = b + (votes * v[:, None]).sum(-1)
        return v.norm(dim=-1)

    return Layers(forward, primary=nn.Conv2d(3, 8, 3, 3), weight=torch.randn(8, 3, 4, 4) / 2)


@architecture("PixelShuffle super-resolution", IMAGE)
def pixel_shuffle():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.PReLU(8), nn.PixelShuffle(2), nn.Conv2d(2, 2, 3), head(2))


@architecture("Normaliser-free ResNet (weight standardisation)", IMAGE)
def nfnet():
    def forward(m, x):
        w = m.conv.weight
        variance, mean = torch.var_mean(w, dim=(1, 2, 3), keepdim=True, correction=0)
        h = F.conv2d(x, (w - mean) * torch.rsqrt(variance * 27 + 1e-4) * m.gain, m.conv.bias, padding=1)
        return m.head(F.gelu(h) * 1.7)

    return Layers(forward, conv=nn.Conv2d(3, 4, 3), gain=torch.ones(4, 1, 1, 1), head=head(4))
