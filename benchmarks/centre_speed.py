"""Panoptic-DeepLab's grouping: ours beside the published formulation, the maps being the same.

    python benchmarks/centre_speed.py [--repeats 9] [--dry]

Photos of 1024×2048 pixels and 19 classes. "map": from class logits, heat and offsets to the panoptic map; ours has the
scores of the objects besides. "nearest": the centre that each pixel of a thing points to, alone. As published, the
distances of all pixels to all centres are taken at once, and each object in turn is asked for its most frequent class;
that is written anew here. Things cover some 40 % of the photo, pixels miss their centres by some pixels, part of each
object is mistaken for another class, and the heat has a peak at each centre, as a trained network's has. "by squares"
is the same with a faster way to take the distances. One thread, whose own time on the processor is measured.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from common import save
from pansight.ops.fast import plain
from pansight.ops.fusion.centres import CentreRule, find_centres, group_pixels, majority, nearest_centres
from pansight.types import LabelSpace, PanopticSegmentation

LABELS = LabelSpace.from_names([f"thing {n}" for n in range(8)], [f"stuff {n}" for n in range(11)])
THINGS = [category.id for category in LABELS.things]
SIZE = (1024, 2048)
CENTRES = (100, 200)


class Maps(NamedTuple):
    """logits float32 (19, H, W), heat float32 (H, W), offsets float32 (2, H, W), y first."""

    logits: Tensor
    heat: Tensor
    offsets_yx: Tensor


def scene(objects: int) -> Maps:
    """Ellipses in the cells of a grid, in front of bands of stuff."""
    draw = torch.Generator().manual_seed(objects)
    rows, (height, width) = 10, SIZE
    columns = objects // rows
    down, across = height / rows, width / columns
    y, x = torch.arange(height)[:, None], torch.arange(width)[None]
    row = torch.div(y, down, rounding_mode="floor").long()
    cell = row * columns + torch.div(x, across, rounding_mode="floor").long()  # (H, W)
    places = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")).flatten(1) + 0.5
    centres = (places * torch.tensor([[down], [across]])).round()  # (2, K)
    away = centres[:, cell] - torch.stack(torch.broadcast_tensors(y, x))  # (2, H, W)
    is_thing = (away[0] / (0.36 * down)) ** 2 + (away[1] / (0.36 * across)) ** 2 < 1
    of_object = torch.tensor(THINGS)[torch.randint(len(THINGS), (2, objects), generator=draw)]
    classes = torch.where(away[0] > 0.2 * down, of_object[1][cell], of_object[0][cell])
    stuff = torch.tensor([category.id for category in LABELS.stuff])[(y * 11 // height)].expand(SIZE)
    classes = torch.where(is_thing, classes, stuff)
    logits = torch.randn((len(LABELS), height, width), generator=draw).scatter_add_(
        0, classes[None], torch.full((1, height, width), 12.0)
    )
    heat = torch.exp(-(away**2).sum(0) / (2 * 8.0**2)) + 0.02 * torch.rand(SIZE, generator=draw)
    return Maps(logits, heat, away + 3 * torch.randn(away.shape, generator=draw))


def pointed(offsets_yx: Tensor) -> Tensor:
    """float32 (2, H · W), y first: the place that each pixel points to."""
    height, width = offsets_yx.shape[1:]
    places = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    return (places + offsets_yx).flatten(1)


def published_nearest(centres_yx: Tensor, offsets_yx: Tensor) -> Tensor:
    """int64 (H, W), numbers from 1; memory for three times as many numbers as there are pixels times centres."""
    distances = (centres_yx[:, None] - pointed(offsets_yx).T).norm(dim=2)  # (K, H · W)
    return distances.argmin(0).view(offsets_yx.shape[1:]) + 1


def written_out(centres_yx: Tensor, offsets_yx: Tensor) -> Tensor:
    """The same by squares instead of torch's norm, which is slow along an axis of two numbers."""
    y, x = pointed(offsets_yx)
    squares = (centres_yx[:, :1] - y) ** 2 + (centres_yx[:, 1:] - x) ** 2  # (K, H · W)
    return squares.argmin(0).view(offsets_yx.shape[1:]) + 1


def published_votes(semantic: Tensor, numbers: Tensor, rule: CentreRule) -> Tensor:
    """int64 (H, W): class · 1000, plus a thing's number in its class; -1 for void."""
    result = torch.full_like(semantic, -1)
    met = [0] * len(LABELS)
    for number in numbers.unique().tolist():
        if number:
            mask = numbers == number
            category = int(semantic[mask].mode().values)
            met[category] += 1
            result[mask] = category * 1000 + met[category]
    for category in LABELS.stuff:
        mask = (semantic == category.id) & (numbers == 0)
        if int(mask.sum()) >= rule.min_stuff_area:
            result[mask] = category.id * 1000
    return result


def in_published_numbers(panoptic: PanopticSegmentation) -> Tensor:
    table, met = [-1], [0] * len(LABELS)
    for segment in panoptic.segments:
        met[segment.category] += segment.category in THINGS
        table.append(segment.category * 1000 + met[segment.category])
    return torch.tensor(table)[panoptic.ids]


Result = TypeVar("Result")


def timed(run: Callable[[], Result], repeats: int = 1) -> tuple[Result, float]:
    """→ (its result, median of the seconds that the process computed)."""
    result, seconds = None, list[float]()
    for _ in range(repeats):
        start = time.process_time()
        result = run()
        seconds.append(time.process_time() - start)
    return cast(Result, result), statistics.median(seconds)


def measure(objects: int, repeats: int) -> dict[str, float]:
    """Seconds of each contender, all of which must agree."""
    maps, rule = scene(objects), CentreRule(centres=objects + 1)  # the last one of as many as are asked for goes
    centres = find_centres(maps.heat, *rule[:3])
    assert len(centres) == objects

    def before() -> tuple[Tensor, Tensor, Tensor]:
        semantic = maps.logits.argmax(0)
        found = find_centres(maps.heat, *rule[:3])
        return semantic, torch.isin(semantic, torch.tensor(THINGS)), found

    (semantic, is_thing, _), classes_and_centres = timed(before)
    theirs, nearest = timed(lambda: published_nearest(centres, maps.offsets_yx))
    squares, by_squares = timed(lambda: written_out(centres, maps.offsets_yx))
    expected, votes = timed(lambda: published_votes(semantic, theirs * is_thing, rule))

    def ours() -> Tensor:
        return nearest_centres(centres, maps.offsets_yx, is_thing)

    def our_map() -> PanopticSegmentation:
        return group_pixels(maps.logits, maps.heat, maps.offsets_yx, LABELS, rule)[0]

    ours()  # compiles
    numbers, our_nearest = timed(ours, repeats)
    panoptic, our_seconds = timed(our_map, repeats)
    with plain():
        without, plain_nearest = timed(ours, repeats)
    assert torch.equal(numbers.long(), theirs * is_thing)
    assert torch.equal(numbers.long(), squares * is_thing)
    assert torch.equal(numbers, without)
    assert torch.equal(in_published_numbers(panoptic), expected)
    return {
        "map, as published": classes_and_centres + nearest + votes,
        "map, by squares": classes_and_centres + by_squares + votes,
        "map, ours": our_seconds,
        "nearest, as published": nearest,
        "nearest, by squares": by_squares,
        "nearest, ours without the compiled loop": plain_nearest,
        "nearest, ours": our_nearest,
    }


def on_two_threads(repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds by the clock, medians: of the map from logits, and of the grouping alone, classes being given."""
    torch.set_num_threads(2)
    found: dict[str, dict[str, float]] = {}
    for objects in CENTRES:
        maps, rule = scene(objects), CentreRule(centres=objects + 1)
        semantic = maps.logits.max(0).indices
        is_thing = torch.isin(semantic, torch.tensor(THINGS))

        whole = by_clock(partial(group_pixels, *maps, LABELS, rule), repeats)
        alone = by_clock(partial(grouping, maps, rule, semantic, is_thing), repeats)
        found[f"{objects} centres"] = {"map": whole, "grouping": alone}
    return found


def grouping(maps: Maps, rule: CentreRule, semantic: Tensor, is_thing: Tensor) -> Tensor:
    """Centres, the pixels of each, and their votes: the class of each object."""
    centres = find_centres(maps.heat, *rule[:3])
    return majority(nearest_centres(centres, maps.offsets_yx, is_thing), semantic, len(centres), len(LABELS))


def by_clock(run: Callable[[], object], repeats: int) -> float:
    seconds: list[float] = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return round(1000 * statistics.median(seconds[1:]), 1)  # the first one warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="of ours; the others take minutes and are run once")
    parser.add_argument("--dry", action="store_true", help="write no file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {"threads": 1, "size": SIZE, "cases": {}}
    for objects in CENTRES:
        seconds = measure(objects, options.repeats)
        ratio = {
            f"{what} / {other}": seconds[f"{what}, ours"] / seconds[f"{what}, {other}"]
            for what in ("map", "nearest")
            for other in ("as published", "by squares")
        }
        milliseconds = {name: round(1000 * value, 1) for name, value in seconds.items()}
        record["cases"][f"{objects} centres"] = {"milliseconds": milliseconds, "ratio": ratio}
        print(f"{objects} centres")
        for name, value in milliseconds.items():
            print(f"  {name:42s} {value:9.1f} ms")
        print("  " + ", ".join(f"{name}: {value:.3f}" for name, value in ratio.items()), flush=True)
    record["on two threads"] = on_two_threads(options.repeats)
    print(f"on two threads, by the clock: {record['on two threads']}")
    if not options.dry:
        save("centre_speed", record)


if __name__ == "__main__":
    main()
