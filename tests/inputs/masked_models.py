"""Small models of several tensors, in the manner of Hugging Face, and the same models of one tensor."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class ModelOutput:
    """What the model returns."""

    logits: torch.Tensor
    hidden: torch.Tensor | None = None


class Classifier(nn.Module):
    """One block of attention over tokens, of which a mask hides some, and a head on their mean."""

    def __init__(self, unit=torch.tanh, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.qkv = nn.Embedding(11, 8), nn.Linear(8, 24)
        self.inner, self.head, self.unit = nn.Linear(8, 8), nn.Linear(8, 3), unit

    def forward(self, input_ids, attention_mask, scale=None):
        """Return logits [N, 3] and hidden values [N, L, 8]."""
        z = self.embedding(input_ids)
        q, k, v = self.qkv(z).chunk(3, -1)
        scores = (q @ k.transpose(-2, -1)) / 8**0.5
        weights = scores.masked_fill((attention_mask == 0)[:, None], -1e4).softmax(-1)
        z = self.unit(self.inner(z + weights @ v))
        kept = attention_mask[..., None].to(z.dtype)
        logits = self.head((z * kept).sum(1) / kept.sum(1))
        return ModelOutput(logits if scale is None else logits * scale[:, None], z)


class Packed(nn.Module):
    """The classifier of one tensor, [N, 2, L]: the tokens, and the mask."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        """Return logits [N, 3]."""
        return self.model(x[:, 0], x[:, 1]).logits


def tokens(number=7, seed=0):
    """Tokens [N, 5] and their mask, which keeps one at least."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 11, (number, 5), generator=generator)
    lengths = torch.randint(1, 6, (number, 1), generator=generator)
    return {"input_ids": ids, "attention_mask": (torch.arange(5)[None] < lengths).long()}


def packed(batch):
    """The same inputs as one tensor."""
    return torch.stack((batch["input_ids"], batch["attention_mask"]), 1)
