"""Attention collapse: 24 blocks with and without Re-attention, trained alike on the embedded digits (8 x 8 scans,
patches of 2, 17 tokens), and how alike the maps of their layers are.

A row a training for benchmarks/results/collapse.csv; those whose row is there are not run again. Cosines are means over
the test images, as `longvision explain --method similarity` has them: of the maps that the values are multiplied with;
of the same with each column's mean taken away, since Re-attention's norm takes most of it away by itself; and of the
maps of softmax, before Re-attention mixes them. Before training, every cosine of plain attention is near 1.

Run: python benchmarks/collapse.py [STEPS [SEEDS]]
"""

import itertools
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longvision.benchmark.provenance import device_name, provenance
from longvision.benchmark.rows import read_rows, write_rows
from longvision.data.config import DigitsData
from longvision.explain.attention import watched_attention
from longvision.explain.similarity import Similarity, SimilarityMeter
from longvision.models import DeepViT

TABLE = Path(__file__).parent / "results" / "collapse.csv"
BLOCKS, BATCH, RATE, DECAY, WARMUP, CLIP = 24, 16, 2e-3, 0.05, 0.1, 1.0
SIZES = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10, "embed_dim": 32, "num_heads": 4}


def trained(data: Any, re_attention: int, seed: int, steps: int) -> DeepViT:
    torch.manual_seed(seed)
    model = DeepViT(**SIZES, depth=BLOCKS, re_attention=re_attention)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY, fused=True)
    batches = itertools.chain.from_iterable(data.train_dataloader() for _ in itertools.count())
    for step, batch in zip(range(steps), batches):
        optimizer.param_groups[0]["lr"] = RATE * rate((step + 1) / steps)
        x, labels_B = data.transforms.mix(batch)
        loss = F.cross_entropy(model(x), labels_B)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    return model.eval()


def rate(done: float) -> float:
    """A linear warm-up, then half a cosine to 0."""
    return done / WARMUP if done < WARMUP else (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP))) / 2


@torch.inference_mode()
def measured(model: DeepViT, data: Any) -> tuple[float, Similarity, Similarity, Similarity]:
    """-> accuracy, and the similarity of the maps, of the maps without columns' means, and of those of softmax."""
    maps, centred, softmax = (SimilarityMeter(BLOCKS) for _ in range(3))
    mixers = [block.attn.reatten_matrix for block in model.blocks if hasattr(block.attn, "reatten_matrix")]
    hooks = [mixer.register_forward_pre_hook(_adding(softmax, number)) for number, mixer in enumerate(mixers)]

    def take(number: int, map_BHMM: Tensor) -> None:
        maps.add(number, map_BHMM)
        centred.add(number, map_BHMM - map_BHMM.mean(-2, keepdim=True))
        if not mixers:
            softmax.add(number, map_BHMM)

    with watched_attention(model, take):
        right = [model(x).argmax(1) == labels_B for x, labels_B in data.test_dataloader()]
    for hook in hooks:
        hook.remove()
    return float(torch.cat(right).float().mean()), maps.result(), centred.result(), softmax.result()


def _adding(meter: SimilarityMeter, number: int) -> Callable[[nn.Module, tuple[Tensor]], None]:
    return lambda _, inputs: meter.add(number, inputs[0])


def row_of(re_attention: int, seed: int, steps: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    data = DigitsData(size=8, batch_size=BATCH, workers=0).build()
    data.setup("fit")
    data.setup("test")
    began = time.process_time()
    model = trained(data, re_attention, seed, steps)
    seconds = time.process_time() - began
    accuracy, maps, centred, softmax = measured(model, data)
    return {
        "blocks": BLOCKS,
        "re_attention": re_attention,
        "seed": seed,
        "steps": steps,
        "cpu_seconds": round(seconds, 1),
        "accuracy": round(accuracy, 4),
        "adjacent": round(float(maps.adjacent().mean()), 4),
        "adjacent_last_half": round(float(maps.adjacent()[BLOCKS // 2 :].mean()), 4),
        "all_pairs": round(float(maps.layers_LL[~torch.eye(BLOCKS, dtype=torch.bool).numpy()].mean()), 4),
        "similar_at_0.9": round(maps.similar_layers(0.9), 4),
        "similar_at_0.8": round(maps.similar_layers(0.8), 4),
        "heads": round(float(maps.heads_L.mean()), 4),
        "adjacent_centred": round(float(centred.adjacent().mean()), 4),
        "adjacent_softmax": round(float(softmax.adjacent().mean()), 4),
        "device": f"{torch.get_num_threads()} threads, {device_name('cpu')}",
        **provenance(),
    }


def main(steps: int = 300, seeds: int = 2) -> None:
    rows = read_rows(TABLE)
    there = {tuple(int(row[key]) for key in ("re_attention", "seed", "steps")) for row in rows}
    for seed, re_attention in itertools.product(range(seeds), (0, BLOCKS)):
        if (re_attention, seed, steps) in there:
            continue
        rows.append(row_of(re_attention, seed, steps))
        print(rows[-1], flush=True)
        write_rows(TABLE, rows)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
