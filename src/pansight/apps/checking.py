"""The output of `pansight check` and `pansight split`: the content of a data set, its defects, and what was done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pansight.data.check import QUERIES, RULES, Checked, Report, check
from pansight.data.check.defects import BY_HAND, Severity, one_line
from pansight.data.check.fix import REPAIRS, Repaired, fix
from pansight.data.check.foreign import NEEDS_CONVERSION, Readable, as_coco
from pansight.data.check.output import require_new
from pansight.data.check.split import Split, split
from pansight.data.check.statistics import Statistics
from pansight.engine.progress import Pace, ProgressBar
from pansight.errors import PansightError
from pansight.files import listed, write_json
from pansight.parallel import workers

KINDS = {
    "panoptic": "COCO panoptic",
    "instances": "COCO instances",
    "detection": "COCO panoptic in the detection format (run lengths)",
}
THINGNESS = {True: "thing", False: "stuff", None: "?"}


@contextmanager
def _bar(label: str, words: str = "image") -> Iterator[Callable[[int, int], None]]:
    pace = Pace()
    with ProgressBar(label) as bar:
        yield lambda done, total: bar.update(done / max(1, total), f"{words} {done}/{total}, {pace.after_one()}")


@contextmanager
def _readable(data: Path, things: Sequence[str] | None, guess: bool, jobs: int) -> Iterator[Readable]:
    """`as_coco` with a bar while it converts."""
    workers(jobs)  # refused before anything is read
    pace = Pace()
    with ProgressBar("read") as bar:

        def show(share: float, text: str) -> None:
            bar.update(share, f"{text}, {pace.after_one()}")

        with as_coco(data, things, guess, show, jobs) as readable:
            yield readable


def check_command(
    data: Path,
    out: Path | None,
    things: str | None,
    json: Path | None,
    images: Path | None,
    panoptic: Path | None,
    limit: int,
    link: bool,
    overwrite: bool,
    jobs: int,
) -> int:
    """1 where DATA has errors and no repaired copy was asked for, else 0."""
    if out is not None:
        require_new(out, REPAIRS, overwrite)
    elif things is not None:
        raise PansightError(where="--things", expected="--fix OUT beside it", found="none: only a copy is changed")
    keep = None if json is not None or out is not None or limit < 1 else limit
    with _readable(data, None, True, jobs) as (folder, notes, left_out):
        with _bar("check") as progress:
            report = replace(check(folder, images, panoptic, keep, progress, jobs), notes=notes, left_out=left_out)
        print(describe(report, str(data), limit))
        if json is not None:
            write_json(json, report.to_json())
            print(f"written: {json}")
        if out is None:
            return 1 if report.findings.number("error") or left_out else 0
        with _bar("fix") as progress:
            names = None if things is None else [n for n in listed(things) if n != "none"]
            repaired = fix(report, out, names, link and data.is_dir(), overwrite, progress, jobs)
    print(describe_repairs(repaired, limit))
    return 0


def split_command(
    data: Path,
    val: float,
    seed: int,
    group: str | None,
    part: str | None,
    out: Path | None,
    link: bool,
    overwrite: bool,
    test: float,
    things: tuple[str, ...] | None,
    jobs: int,
) -> int:
    """Print the table of classes and where the parts are. 1 where the conversion left something out, else 0."""
    target = out if out is not None else _beside(data)
    with _readable(data, things, False, jobs) as (folder, notes, left_out), _bar("split") as progress:
        is_linked = link and data.is_dir()  # files of an unpacked ZIP are gone in a moment
        result = split(folder, target, val, seed, group, part, is_linked, overwrite, progress, test, jobs=jobs)
    result = result._replace(notes=(*notes, *(f"left out: {line}" for line in left_out)))
    print(describe_split(result))
    return 1 if left_out else 0


def _beside(data: Path) -> Path:
    """DATA_split beside DATA, "." and ".." included."""
    place = data if data.name not in ("", "..") else data.resolve()
    if not place.name:
        raise PansightError(where=data, expected="a name for the new folder", found="none: --out OUT")
    return place.with_name(f"{place.name if data.is_dir() else place.stem}_split")


# --- check -----------------------------------------------------------------------------------------------------------


def describe(report: Report, name: str, limit: int = 20) -> str:
    """Statistics, then every defect under its code (at most `limit` of each, 0: all), then the verdict."""
    kind = KINDS[report.parts[0].part.kind] if report.parts else "no annotations that can be read"
    kind = "" if report.notes else f"{kind}, "
    lines = [f"{name}: {kind}{_count(report.images, 'image')}"]
    for file in report.skipped:
        lines.append(f"not checked: {file} (another kind of annotations; give the file itself to check it)")
    lines += [f"note: {one_line(note, 400)}" for note in report.notes]
    shown = report.left_out if limit < 1 else report.left_out[:limit]
    lines += [f"left out: {one_line(line, 400)}" for line in shown]
    for checked in report.parts:
        lines += ["", *_describe_part(checked)]
    lines += ["", *_class_table(report.parts, limit)] if report.parts else []
    for severity in ("error", "warning", "note"):
        lines += _describe_defects(report, severity, limit)
    return "\n".join([*lines, "", _verdict(report, name)])


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _percent(part: int, total: int) -> str:
    return f"{100 * part / total:.1f} %" if total else "–"


def _describe_part(checked: Checked) -> list[str]:
    part, counted = checked.part, checked.statistics
    number = {kind: sum(c.is_thing is kind for c in part.classes.values()) for kind in (True, False, None)}
    classes = ", ".join(
        text
        for kind, text in (
            (True, _count(number[True], "thing")),
            (False, f"{number[False]} stuff"),
            (None, f"{number[None]} undecided"),
        )
        if number[kind]
    )
    lines = [
        f"{one_line(part.name)} ({part.show(part.json)}): {_count(counted.images, 'image')}, "
        f"{_count(len(part.classes), 'class').replace('classs', 'classes')} ({classes})"
    ]
    if not counted.per_image:
        return lines
    shares = [(k, counted.pixels(kind)) for k, kind in (("things", True), ("stuff", False), ("undecided", None))]
    text = "   ".join(f"{key} {_percent(n, counted.total)}" for key, n in shares if n)
    lines.append(f"  pixels       {text + '   ' if text else ''}void {_percent(counted.void, counted.total)}")
    sizes = ", ".join(f"{counted.sizes[key]:,} {key}" for key in ("small", "medium", "large"))
    things = counted.segments(True) + counted.segments(None)
    crowds = f", {_count(counted.crowds, 'crowd')}" if counted.crowds else ""
    lines.append(f"  segments     {things:,} things ({sizes}{crowds}), {counted.segments(False):,} stuff")
    lines.append("               small < 32² ≤ medium < 96² ≤ large, in pixels")
    return [*lines, *_describe_images(counted)]


def _describe_images(counted: Statistics) -> list[str]:
    objects = counted.objects()
    lines = [f"  per image    {objects['median']} segments (median), {objects['p90']} (90th percentile), "]
    lines[-1] += f"{objects['max']} (most)"
    common = counted.image_sizes.most_common(3)
    more = len(counted.image_sizes) - len(common)
    text = ", ".join(f"{height}×{width} ({n:,} ×)" for (height, width), n in common)
    lines.append(f"  height×width {text}{f' and {more:,} other sizes' if more else ''}")
    beyond = objects[f"images_over_{QUERIES}"]
    if beyond:
        lines.append(
            f"  careful      {_count(beyond, 'image')} with more than {QUERIES} segments: query-based models find at"
        )
        lines.append(
            f"               most as many as their queries, {QUERIES} as published; give yours {objects['max']}"
        )
    return lines


def _class_table(parts: tuple[Checked, ...], limit: int) -> list[str]:
    """Classes that occur, most pixels first: id, kind, and for each part images, segments and share of pixels."""
    names: dict[int, tuple[str, str]] = {}
    for checked in parts:
        for number, row in checked.part.classes.items():
            names.setdefault(number, (one_line(row.name, 30), THINGNESS[row.is_thing]))
    counts = [{n: c for n, c in checked.statistics.counts.items() if c.segments} for checked in parts]
    order = sorted(names, key=lambda n: (-sum(c[n].pixels for c in counts if n in c), n))
    seen = [n for n in order if any(n in c for c in counts)]
    shown = seen if limit < 1 else seen[:limit]
    if not shown:
        return ["no segments"]
    width = max(5, *(len(names[n][0]) for n in shown))
    titles = "".join(f"  {one_line(c.part.name, 27):>27}" for c in parts)
    lines = [f"{'':{width}}  {'':>6}  {'':5}{titles}"] if len(parts) > 1 else []
    columns = "".join(f"  {'images':>8} {'segments':>9} {'pixels':>8}" for _ in parts)
    lines.append(f"{'class':{width}}  {'id':>6}  {'kind':5}{columns}")
    for n in shown:
        cells = ""
        for checked, count in zip(parts, counts):
            if n in count:
                share = _percent(count[n].pixels, checked.statistics.total)
                cells += f"  {count[n].images:8,} {count[n].segments:9,} {share:>8}"
            else:
                cells += f"  {'–':>8} {'–':>9} {'–':>8}"
        lines.append(f"{names[n][0]:{width}}  {one_line(n, 12):>6}  {names[n][1]:5}{cells}")
    if len(seen) > len(shown):
        lines.append(f"… and {len(seen) - len(shown)} more classes (--limit 0 lists all)")
    absent = [names[n][0] for n in sorted(names) if n not in seen]
    if absent:
        some = ", ".join(absent[:8]) + (f" and {len(absent) - 8} more" if len(absent) > 8 else "")
        lines.append(f"without a segment: {some}")
    return lines


def _describe_defects(report: Report, severity: Severity, limit: int) -> list[str]:
    codes = [c for c, rule in RULES.items() if rule.severity == severity and report.findings.counts[c]]
    if not codes:
        return []
    lines = ["", f"{severity}s"]
    limit = limit if severity != "note" else min(limit or 3, 3)
    repairable = all(checked.part.kind == "panoptic" for checked in report.parts)
    for code in codes:
        count, rule = report.findings.counts[code], RULES[code]
        by_fix = rule.remedy and not rule.remedy.startswith((BY_HAND, "pansight"))
        advised = rule.remedy and (repairable or not by_fix)  # --fix repairs COCO panoptic alone
        remedy = f"  → {'--fix: ' if by_fix else ''}{rule.remedy}" if advised else ""
        lines.append(f"  {code}: {count:,} × {rule.meaning}{remedy}")
        found = [d for d in report.findings.defects if d.code == code]
        shown = found if limit < 1 else found[:limit]
        lines += [f"    {d.line()}" for d in shown]
        if count > len(shown):
            lines.append(
                f"    … and {count - len(shown):,} more" + (" (--limit 0 lists all)" if severity != "note" else "")
            )
    return lines


def _verdict(report: Report, name: str) -> str:
    numbers = {severity: report.findings.number(severity) for severity in ("error", "warning", "note")}
    counts = ", ".join(_count(number, severity) for severity, number in numbers.items() if number)
    text = f"{counts or 'nothing'} found in {_count(report.images, 'image')}"
    if report.parts and report.parts[0].part.kind != "panoptic":
        return f"{text}\nfor panoptic training and figures convert it first: pansight convert {name} --to OUT"
    if report.left_out:
        text += f"; {len(report.left_out):,} left out, since they cannot be read"
    if NEEDS_CONVERSION in report.notes:
        return f"{text}\nfor training convert it: pansight convert {name} --to OUT"
    if report.left_out and not numbers["error"]:
        return text
    if not numbers["error"]:
        return f"{text}: ready to use"
    by_hand = [code for code in report.findings.blocking if code != "isthing"]
    first = f"settle by hand first: {', '.join(by_hand)}\n" if by_hand else ""
    things = " --things A,B,C" if "isthing" in report.findings.blocking else ""
    return f"{text}\n{first}a repaired copy: pansight check {name} --fix OUT{things}"


def describe_repairs(repaired: Repaired, limit: int = 20) -> str:
    """What became of each kind of defect, and which images were left out."""
    lines = ["", f"repaired copy: {repaired.folder}, {_count(repaired.images, 'image')}"]
    lines += [f"  {code}: {count:,} × {RULES[code].remedy}" for code, count in repaired.done.items()]
    if repaired.dropped:
        lines.append(f"images left out: {len(repaired.dropped):,}")
        shown = repaired.dropped if limit < 1 else repaired.dropped[:limit]
        lines += [f"  {one_line(part)}: {name or 'no name'} (image {one_line(number)})" for part, number, name in shown]
        if len(shown) < len(repaired.dropped):
            lines.append(f"  … and {len(repaired.dropped) - len(shown):,} more")
    return "\n".join([*lines, f"everything that was done, one by one: {repaired.folder / REPAIRS}"])


# --- split -----------------------------------------------------------------------------------------------------------


def describe_split(result: Split) -> str:
    """A line for each class: images and segments on all sides, and the share that is in val."""
    total = sum(result.images)
    groups = f" in {result.groups:,} groups" if result.groups < total else ""
    train, *held = zip(result.sides, result.images)
    parts = ", ".join(f"{number:,} {side} ({_percent(number, total)})" for side, number in held)
    lines = [f"{result.folder}: {total:,} images{groups}: {train[1]:,} train, {parts}"]
    lines += [*(f"note: {one_line(note, 400)}" for note in result.notes), ""]
    more = 8 * (len(held) - 1)
    width = max([5, *(len(one_line(row.name, 30)) for row in result.classes)])
    lines.append(f"{'':{width}}  {'images':^{24 + more}}  {'segments':^{16 + more}}".rstrip())
    names = "".join(f" {side:>7}" for side in result.sides[1:])
    lines.append(f"{'class':{width}}  {'train':>7}{names} {'in val':>8}  {'train':>8}{names}")
    for row in result.classes:
        share = _percent(row.images[1], sum(row.images))
        lines.append(
            f"{one_line(row.name, 30):{width}}  {' '.join(f'{n:7,}' for n in row.images)} {share:>8}"
            f"  {row.segments[0]:8,} {' '.join(f'{n:7,}' for n in row.segments[1:])}"
        )
    absent = [[one_line(r.name, 30) for r in result.classes if not r.images[side]] for side in range(len(result.sides))]
    for side, names in zip(result.sides, absent):
        if names:
            lines.append(
                f"not in {side}: {', '.join(names[:10])}{f' and {len(names) - 10} more' if len(names) > 10 else ''}"
            )
    return "\n".join(lines)
