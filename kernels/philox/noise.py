"""Normals and random signs of slabs, from the integer words of the stream; README.md draws both layouts."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nntk.kernels.philox.integers import Words, stream_words
from nntk.kernels.philox.slabs import Slab


def box_muller(word: Tensor, angle: Tensor) -> Tensor:
    r"""Return two unit normals from two words: :math:`\sqrt{-2 \ln u}\,(\cos t, \sin t)`.

    Here :math:`u = 2^{-32} w + 2^{-33}` and :math:`t = 2\pi 2^{-32} w'`, with every step rounded to float32.

    Args:
        word: Word w of the radius, int64.
        angle: Word w' of the angle, int64, of the same shape.

    Returns:
        The cosine and the sine branch along a new last axis of size 2, float32.
    """
    # Rounding makes u at most 1, where the logarithm is exactly zero: the radius is never imaginary.
    radius = word.to(torch.float32).mul_(2.0**-32).add_(2.0**-33).log_().mul_(-2.0).sqrt_()
    t = angle.to(torch.float32).mul_(2.0 * math.pi * 2.0**-32)
    return torch.stack((t.cos().mul_(radius), t.sin_().mul_(radius)), dim=-1)


def _normals(words: Words) -> tuple[Tensor, ...]:
    """Return the pairs of words (0, 1) and (2, 3) as two normals each, [M, B, 2], bfloat16."""
    return box_muller(*words[:2]).to(torch.bfloat16), box_muller(*words[2:]).to(torch.bfloat16)


def _arrange_normals(pairs: Sequence[Tensor], slab: Slab) -> Tensor:
    samples, length = len(pairs[0]), slab.stop - slab.start
    if not slab.is_matrix:
        return torch.stack(tuple(pairs), dim=2).flatten(1)[:, :length]
    # A block's words (0, 1) give columns 2q, 2q + 1 of its group of 16, and (2, 3) columns 2q + 8, 2q + 9.
    groups = torch.stack([pair.reshape(samples, -1, 8) for pair in pairs], dim=2)
    return groups.view(samples, length, -1)[..., : slab.width].reshape(samples, length, *slab.shape[1:])


def arrange_packed_signs(words: Sequence[Tensor], slab: Slab) -> Tensor:
    """Arrange random signs, 32 to a word: bit k mod 32 of word k // 32 is set where column k is -1.

    Args:
        words: The four words of the slab's blocks, [M, B], int32.
        slab: Slab that the signs belong to.

    Returns:
        int32 words: [M, stop - start, ceil(width / 32)], or [M, ceil((stop - start) / 32)] for a vector. Bits past the
        end of a row are random and never used.
    """
    samples, length = len(words[0]), slab.stop - slab.start
    if not slab.is_matrix:
        return torch.stack(tuple(words), dim=-1).flatten(1)[:, : -(-length // 32)]
    columns = -(-slab.width // 32)
    quads = torch.stack([word.reshape(samples, -1, columns) for word in words], dim=2)
    return quads.view(samples, -1, columns)[:, :length]


def _arrange_signs(words: Sequence[Tensor], slab: Slab) -> Tensor:
    octets = arrange_packed_signs(words, slab).contiguous().view(torch.uint8).int()
    bits = torch.arange(8, device=octets.device)
    values = 1 - 2 * ((torch.arange(256, device=octets.device)[:, None] >> bits) & 1)
    noise = torch.nn.functional.embedding(octets, values.float()).flatten(-2)
    length = slab.stop - slab.start
    if not slab.is_matrix:
        return noise[:, :length]
    return noise[..., : slab.width].reshape(len(noise), length, *slab.shape[1:])


def _normal_blocks(slab: Slab) -> tuple[int, int]:
    """Return a number of blocks and the number of slices that they cover, by the layout of README.md."""
    return (-(-slab.width // 16) * 4, 1) if slab.is_matrix else (1, 4)


def _sign_blocks(slab: Slab) -> tuple[int, int]:
    return (-(-slab.width // 32), 4) if slab.is_matrix else (1, 128)


def _words(
    span: Callable[[Slab], tuple[int, int]], sample_ids: Tensor, slabs: Sequence[Slab], key: tuple[int, int]
) -> tuple[Words, list[int]]:
    """Return the words of several slabs together, [M, blocks of all], and the number of blocks of each slab."""
    ranges = [
        (slab.start // slices * blocks, -(-slab.stop // slices) * blocks)
        for slab, (blocks, slices) in ((slab, span(slab)) for slab in slabs)
    ]
    counts = [stop - start for start, stop in ranges]
    device = sample_ids.device
    blocks = torch.cat([sample_ids[:0], *(torch.arange(start, stop, device=device) for start, stop in ranges)])
    # Numbers are filled in on the device: a copy from the host would wait for it, and a graph cannot capture one.
    ordinals, purposes = (
        torch.cat([sample_ids[:0], *(sample_ids.new_full((n,), one) for n, one in zip(counts, ones, strict=True))])
        for ones in ([slab.ordinal for slab in slabs], [slab.purpose for slab in slabs])
    )
    return stream_words(sample_ids, blocks, ordinals, key, purposes), counts


def normals(sample_ids: Tensor, slabs: Sequence[Slab], key: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    """Generate unit normals rounded to bfloat16, in the layout of the gaussian family, for the purpose of each slab.

    Args:
        sample_ids: Stream numbers m of the samples, [M], int64.
        slabs: Slabs to generate together.
        key: Low and high 32 bits of the seed.
        dtype: Floating dtype of the result; it represents the values exactly.

    Returns:
        For each slab [M, stop - start, *shape[1:]].
    """
    words, counts = _words(_normal_blocks, sample_ids, slabs, key)
    pairs = [torch.split(pair, counts, dim=1) for pair in _normals(words)]
    return [_arrange_normals(parts, slab).to(dtype) for *parts, slab in zip(*pairs, slabs, strict=True)]


def signs(sample_ids: Tensor, slabs: Sequence[Slab], key: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    """Generate random signs in the layout of the rademacher family; arguments and result as for :func:`normals`."""
    words, counts = _words(_sign_blocks, sample_ids, slabs, key)
    packed = [torch.split(word.to(torch.int32), counts, dim=1) for word in words]
    return [_arrange_signs(parts, slab).to(dtype) for *parts, slab in zip(*packed, slabs, strict=True)]
