"""Read the stuff of COCO-stuff, which lies below COCO's instances: pixel maps, or the JSON of the stuff task.

Pixel maps (stuffthingmaps of the COCO-stuff release): 8-bit PNGs, value = category id − 1, 255 = none; what they say of
things (values below 91) is left to the instances. The JSON (stuff_train2017.json): one run-length mask a class and
image, category ids 92 … 182, and 183, "other", for the pixels of things. https://github.com/nightrome/cocostuff
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pansight.data.convert.source import SourceCategory
from pansight.data.images import read_index_png
from pansight.errors import PansightError
from pansight.files import safe_join
from pansight.ops.idmap import IdArray, present_ids, relabel

FIRST, OTHER = 92, 183

NAMES = """
banner|blanket|branch|bridge|building-other|bush|cabinet|cage|cardboard|carpet|ceiling-other|ceiling-tile|cloth|clothes|
clouds|counter|cupboard|curtain|desk-stuff|dirt|door-stuff|fence|floor-marble|floor-other|floor-stone|floor-tile|
floor-wood|flower|fog|food-other|fruit|furniture-other|grass|gravel|ground-other|hill|house|leaves|light|mat|metal|
mirror-stuff|moss|mountain|mud|napkin|net|paper|pavement|pillow|plant-other|plastic|platform|playingfield|railing|
railroad|river|road|rock|roof|rug|salad|sand|sea|shelf|sky-other|skyscraper|snow|solid-other|stairs|stone|straw|
structural-other|table|tent|textile-other|towel|tree|vegetable|wall-brick|wall-concrete|wall-other|wall-panel|
wall-stone|wall-tile|wall-wood|water-other|waterdrops|window-blind|window-other|wood
""".replace("\n", "").split("|")
"""The 91 classes, in the order of their ids from 92 on."""

STUFF = tuple(SourceCategory(name, FIRST + n, False) for n, name in enumerate(NAMES))


def stuff_maps(folder: Path, part: str | None) -> Callable[[str, tuple[int, int]], IdArray]:
    """(file name of an image, its (H, W)) → int32 (H, W), the category id of the stuff in each pixel, 0 = none.

    The PNGs are called like the images and lie in `folder` or in its sub-folder `part`. Calls raise PansightError where
    a PNG is missing, of another size, or holds values that are no class.
    """
    place = folder / part if part is not None and (folder / part).is_dir() else folder

    def read(file_name: str, size: tuple[int, int]) -> IdArray:
        png = safe_join(place, Path(file_name).with_suffix(".png").name, folder)
        values = read_index_png(png)
        if values.shape != size:
            expected, found = f"{size[0]}×{size[1]} (its image)", "×".join(str(n) for n in values.shape)
            raise PansightError(where=png, expected=f"a map of {expected}", found=found)
        present = present_ids(values).tolist()
        bad = [v for v in present if FIRST + len(NAMES) - 1 <= v != 255]
        if bad:
            raise PansightError(where=png, expected="COCO-stuff's category ids − 1, 0 … 181 or 255", found=bad[0])
        return relabel(values, {v: v + 1 for v in present if FIRST - 1 <= v < 255})

    return read
