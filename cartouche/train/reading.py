"""What the reader learns to point at: finding objects by text (OWL-ViT), and masking them (CLIPSeg).

The truth is known exactly, so no matching is learned or solved: an object belongs to the token under its centre, as a
cell owns an object in YOLO (Redmon et al. 2016, section 2). OWL-ViT's boxes start at their own token's place, so this
is what the net would say before any training, and objects of a scene never share a token's centre but by accident.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from cartouche.nets.owlvit import corners
from cartouche.train.tasks import Batch, Notes, pictures


@dataclass(frozen=True)
class Detection:
    """Each object's token says its name and its box; all others say nothing.

    batch, for at most M objects a picture: image (B, 3, H, W); there (B, M) bool; boxes (B, M, 4) as centre and size in
    0..1; family (B, M) and colour (B, M) numbers, -1 for no one colour; ids (B, M, N), a query that is true of the
    object, and said (B, M), the colour it speaks of or -1. names (T, N) with their family (T,): `others` of them join
    the queries of the batch where names are told apart.

    Whether something is there: all tokens against the batch's queries, sigmoid focal loss (Lin et al. 2017, eq. 5), as
    OWL-ViT was trained (Minderer et al. 2022, section 3.3); only the token under a centre is to say yes. Besides, every
    token inside an object says its name by cross-entropy among all texts (1,503 names are told apart far sooner against
    each other than each against nothing) and its box by L1 and GIoU (DETR, Carion et al. 2020, eq. 4, with its
    weights): ten tokens teach the net sooner than one. The one under the centre counts `middle` times.
    """

    names: Tensor
    families: Tensor
    others: int = 128
    gamma: float = 2.0
    alpha: float = 0.25
    middle: float = 4.0
    weights: tuple[float, float, float, float] = (1.0, 1.0, 5.0, 2.0)  # focal, naming, L1, GIoU

    def __call__(self, net: Any, batch: Batch, generator: Generator) -> tuple[Tensor, Notes]:
        boxes, embeds, shift, scale = net.detect(pictures(batch["image"]))
        there, wanted = batch["there"], batch["boxes"]
        texts, family, said = self.texts(batch, generator)
        own = there.numel()
        logits = net.match(embeds, shift, scale, net.queries(texts)).float()  # (B, P, Q)
        right, unsure = true_of(batch["family"], batch["colour"], family, said)  # (B, M, Q)
        centre, owner, weight = owners(wanted, there, boxes.shape[1], self.middle)
        mine, vague = (of_owner(one, owner) for one in (right, unsure))  # (B, P, Q)
        truth = (mine[..., :own] & centre[..., None]).float()
        care = there.flatten() & ~(vague[..., :own] & centre[..., None])  # texts of empty places count nowhere
        apart = naming(logits, mine, vague | (family < 0))
        near, hull = box_losses(boxes.float(), of_owner(wanted, owner))
        total = weight.sum().clamp(min=1)
        losses = {
            "focal": (care * focal(logits[..., :own], truth, self.gamma, self.alpha)).sum() / there.sum().clamp(min=1),
            "naming": (weight * apart).sum() / total,
            "l1": (weight * near).sum() / total,
            "giou": (weight * hull).sum() / total,
        }
        notes = {name: float(value.detach()) for name, value in losses.items()}
        best = logits.detach().masked_fill(family < 0, -torch.inf).argmax(-1, keepdim=True)
        notes["named"] = float(mine.gather(-1, best)[..., 0][centre].float().mean())
        notes["iou"] = float(1 - hull.detach()[centre].mean())
        terms = [weigh * value for weigh, value in zip(self.weights, losses.values(), strict=True)]
        return torch.stack(terms).sum(), notes

    def texts(self, batch: Batch, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The batch's own queries, one a place, and `others` names: ids (Q, N'), family and colour said (Q,), or -1."""
        chosen = torch.randint(len(self.names), (self.others,), generator=generator, device=generator.device)
        device = batch["ids"].device
        ids = torch.cat([batch["ids"].flatten(0, 1), self.names.to(device)[chosen]])
        family = torch.cat([batch["family"].flatten(), self.families.to(device)[chosen]])
        said = torch.cat([batch["said"].flatten(), torch.full_like(chosen, -1, device=device)])
        return trimmed(ids), family, said


def trimmed(ids: Tensor) -> Tensor:
    """Rows of ids (Q, N) without the columns that only pad, but for a multiple of 8: new shapes cost a CPU time.

    Texts end at their largest id, as in every CLIP.
    """
    return ids[:, : -(-(int(ids.argmax(-1).max()) + 1) // 8) * 8]


def owners(boxes: Tensor, there: Tensor, tokens: int, middle: float) -> tuple[Tensor, Tensor, Tensor]:
    """Which token is whose: three of (B, P).

    boxes (B, M, 4) as centre and size in 0..1, there (B, M). Returns the tokens under a centre (bool); the object that
    each token lies in; and how much it counts: 0 outside of all objects, 1 inside, and `middle` under a centre.
    """
    side = int(tokens**0.5)
    at = (torch.arange(side, device=boxes.device) + 0.5) / side
    grid = torch.stack([at.repeat(side), at.repeat_interleave(side)], -1)  # (P, 2), row by row
    away = (grid[None, :, None] - boxes[:, None, :, :2]).abs()  # (B, P, M, 2)
    under = (away <= 0.5 / side).all(-1) & there[:, None]
    inside = (away <= boxes[:, None, :, 2:] / 2).all(-1) & there[:, None]
    claim = inside.float() + 2 * under.float()
    centre = under.any(-1)
    return centre, claim.argmax(-1), torch.where(centre, middle, inside.any(-1).float())


def of_owner(values: Tensor, owner: Tensor) -> Tensor:
    """The values (B, M, N) of each token's owner (B, P): (B, P, N)."""
    return values.gather(1, owner[..., None].expand(-1, -1, values.shape[-1]))


def box_losses(found: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """L1 and 1 - GIoU of boxes (..., 4) as centre and size."""
    hull = generalised_iou(corners(found).flatten(0, -2), corners(wanted).flatten(0, -2))
    return (found - wanted).abs().sum(-1), 1 - hull.view(found.shape[:-1])


def true_of(family: Tensor, colour: Tensor, named: Tensor, said: Tensor) -> tuple[Tensor, Tensor]:
    """Which texts are true of which objects, and which nobody can tell: two of (..., Q) bool.

    family, colour (...) of the objects; named, said (Q,), the family and the colour that the texts speak of, -1 for
    none. Unsure: the right family, and a colour said of an object that has no one colour. An object of family -1 is
    none, and nothing is true of it.
    """
    same = (family[..., None] == named) & (family[..., None] >= 0)
    coloured = (said == -1) | (said == colour[..., None])
    unsure = same & (said != -1) & (colour[..., None] == -1)
    return same & coloured & ~unsure, unsure


def focal(logits: Tensor, truth: Tensor, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """-alpha_t (1 - p_t)^gamma log p_t of each logit (Lin et al. 2017, eq. 5), the same shape."""
    cross = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    p = torch.exp(-cross)  # the probability given to the truth
    return (alpha * truth + (1 - alpha) * (1 - truth)) * (1 - p) ** gamma * cross


def naming(logits: Tensor, right: Tensor, left_out: Tensor) -> Tensor:
    """-log of the probability that all right texts have together, among those not left out. (..., Q) -> (...).

    0 where no text is right.
    """
    among = logits.masked_fill(left_out, float("-inf")).logsumexp(-1)
    mine = logits.masked_fill(~right | left_out, float("-inf"))
    some = (right & ~left_out).any(-1)
    return torch.where(some, among - torch.where(some[..., None], mine, logits).logsumexp(-1), 0.0)


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """GIoU of boxes pair by pair, (K, 4) as corners: IoU less the share of the hull that neither fills
    (Rezatofighi et al. 2019, algorithm 1)."""
    inside = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(-1)
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(-1)
    union = (a[:, 2:] - a[:, :2]).prod(-1) + (b[:, 2:] - b[:, :2]).prod(-1) - inside
    return inside / union.clamp(min=1e-9) - (hull - union) / hull.clamp(min=1e-9)


@dataclass(frozen=True)
class Segmentation:
    """A mask for each text: the pixels of what it names, none where that is not there.

    batch: image (B, 3, H, W); ids (B, Q, N), texts about it; mask (B, Q, H, W) uint8. Binary cross-entropy as CLIPSeg
    was trained (Lüddecke and Ecker 2022, section 4), and dice (Milletari et al. 2016, eq. 2), which weighs a small
    thing's pixels like a large one's. Dice weighs most: where the net cannot tell which thing is meant it then says all
    of them rather than none, and a mask is cut to the box that the detector found for that name.
    """

    cross: float = 0.25

    def __call__(self, net: Any, batch: Batch, generator: Generator) -> tuple[Tensor, Notes]:
        ids, mask = batch["ids"], batch["mask"].flatten(0, 1).float()
        each = ids.shape[1]
        features = net.features(pictures(batch["image"]))  # (B, L, 1 + P, D)
        queries = net.queries(trimmed(ids.flatten(0, 1)))
        logits = net.segment(features.repeat_interleave(each, 0), queries).float()  # (B Q, H, W)
        cross = F.binary_cross_entropy_with_logits(logits, mask)
        apart = dice(logits.sigmoid(), mask)
        there = mask.flatten(1).any(1)
        with torch.no_grad():
            found = logits > 0
            both, either = (found & (mask > 0)).sum((1, 2)), (found | (mask > 0)).sum((1, 2))
            iou, empty = (both / either.clamp(min=1))[there].mean(), (~found[~there].flatten(1).any(1)).float().mean()
        notes = {"cross": cross, "dice": apart, "iou": iou, "empty": empty}
        return self.cross * cross + apart, {name: float(value.detach()) for name, value in notes.items()}


def dice(chance: Tensor, mask: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - 2 |A B| / (|A| + |B|), the mean over pictures (K, H, W), of those whose mask is not empty."""
    there = mask.flatten(1).any(1).float()
    both, size = (chance * mask).sum((1, 2)), (chance + mask).sum((1, 2))
    return ((1 - (2 * both + smooth) / (size + smooth)) * there).sum() / there.sum().clamp(min=1)
