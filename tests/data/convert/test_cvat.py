"""CVAT for images 1.1: exact maps of every shape, order and groups, subsets, hostile XML."""

import time

import numpy as np
import pytest
from drawn import names, photo, refused, same, turned_photo

from pansight.data.convert import convert, detect
from pansight.data.convert.readers.cvat import is_cvat, open_cvat, splits_cvat
from pansight.data.convert.shapes import rectangle_points

META = """<meta><task><id>7</id><name>street</name><size>1</size><mode>annotation</mode><labels>
<label><name>road</name><color>#804080</color><type>any</type><attributes>
  <attribute><name>wet</name><mutable>False</mutable></attribute></attributes></label>
<label><name>car</name><color>#0a141e</color><type>polygon</type><attributes></attributes></label>
<label><name>nose</name><color>#ffffff</color><type>points</type></label>
<label><name>body</name><type>skeleton</type><svg>&lt;line/&gt;</svg></label>
<label><name>1</name><type>points</type><parent>body</parent></label>
</labels></task><dumped>2026-01-02</dumped></meta>"""

SQUARE = (
    '<polygon label="car" source="manual" occluded="0" points="2.00,0.00;6.00,0.00;6.00,3.00;2.00,3.00" z_order="0">'
)
SQUARE += '<attribute name="wet">false</attribute></polygon>'


def xml(*images, meta=META):
    head = '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
    return f"{head}{meta}\n{''.join(images)}</annotations>"


def image(*shapes, name="a.jpg", size=(6, 8), more=""):
    return f'<image id="0" name="{name}" width="{size[1]}" height="{size[0]}"{more}>{"".join(shapes)}</image>\n'


def tree(root, *shapes):
    photo(root / "images/a.jpg")
    (root / "annotations.xml").write_text(xml(image(*(shapes or (SQUARE,)))))
    return root


def test_every_kind_of_region(tmp_path):
    source = open_cvat(
        tree(
            tmp_path,
            SQUARE,
            '<box label="road" occluded="1" xtl="6.0" ytl="4.0" xbr="8.0" ybr="6.0"></box>',
            '<mask label="car" rle="0, 1, 1, 1, 1, 1, 1" left="5" top="3" width="3" height="2"/>',
            '<ellipse label="road" cx="2.0" cy="4.5" rx="1.4" ry="1.4"/>',
            '<box label="tree" xtl="0" ytl="2" xbr="2" ybr="3" rotation="90.00"/>',
        )
    )
    found = source[0]
    same(found, "..1111.. ..1111.. .51111.. .54..3.3 .44...32 .44...22")
    assert names(found, source) == ["car", "road", "car", "road", "tree"]
    assert [(c.name, c.source_id, c.is_thing, c.color) for c in source.categories] == [
        ("road", 1, None, (128, 64, 128)),
        ("car", 2, None, (10, 20, 30)),
        ("tree", 3, None, None),
    ]
    assert (found.image_id, found.file_name, found.size) == ("a", "a.jpg", (6, 8))
    assert source.notes == ()


def test_shapes_turn_clockwise(tmp_path):
    box = '<box label="car" xtl="2" ytl="2" xbr="6" ybr="4" rotation="45"/>'
    same(open_cvat(tree(tmp_path, box))[0], "........ ..11.... ..111... ...111.. ....1... ........")
    corners = rectangle_points(0, 0, 2, 0, 90)
    assert np.allclose(corners, [(0, 0), (0, 2), (0, 2), (0, 0)])
    corners = rectangle_points(1, 1, 2, 2, 180, (1, 1))
    assert np.allclose(corners, [(1, 1), (-1, 1), (-1, -1), (1, -1)])


def test_z_order_is_the_order_of_painting(tmp_path):
    high = SQUARE.replace('z_order="0"', 'z_order="3"')
    low = '<box label="road" xtl="0" ytl="0" xbr="8" ybr="2" z_order="-1"/>'
    middle = '<box label="tree" xtl="5" ytl="0" xbr="8" ybr="6" z_order="1"/>'
    source = open_cvat(tree(tmp_path, high, middle, low))
    same(source[0], "11333322 11333322 ..333322 .....222 .....222 .....222")
    assert names(source[0], source) == ["road", "tree", "car"]
    assert source.notes == (
        "where shapes overlap, CVAT shows the one of higher z_order: that is --overlap later-on-top",
    )


def test_one_label_and_group_is_one_object(tmp_path):
    def box(label, x, y, group, z=0):
        return (
            f'<box label="{label}" xtl="{x}" ytl="{y}" xbr="{x + 2}" ybr="{y + 2}" group_id="{group}" z_order="{z}"/>'
        )

    shapes = box("car", 0, 0, 1, 5), box("road", 6, 0, 1), box("car", 4, 4, 1), box("car", 3, 0, 2), box("car", 0, 4, 0)
    source = open_cvat(tree(tmp_path, *shapes, box("car", 6, 4, 0)))
    same(source[0], "55.22.11 55.22.11 ........ ........ 33..5544 33..5544")
    assert names(source[0], source) == ["road", "car", "car", "car", "car"]


def test_what_is_no_region_is_told(tmp_path):
    shapes = (
        SQUARE,
        '<polyline label="edge" points="0,0;5,5" z_order="0"/>',
        '<points label="nose" points="1,1"/><points label="nose" points="2,2"/>',
        '<skeleton label="body"><points label="1" points="3,3" outside="0"/></skeleton>',
        '<cuboid label="car" xtl1="1"/><tag label="rain" source="manual"/>',
        '<polygon label="car" points="1,1;3,1;2,1"/>',
    )
    source = open_cvat(tree(tmp_path, *shapes))
    same(source[0], "..1111.. ..1111.. ..1111.. ........ ........ ........")
    assert source[0].empty == (1,)
    assert [c.name for c in source.categories] == ["road", "car"]
    assert source.notes == (
        "shapes that are no regions are left out: 1 cuboid, 2 points, 1 polyline, 1 skeleton, 1 tag",
    )


def test_subsets_are_parts(tmp_path):
    root = tmp_path / "in"
    photo(root / "images/Train/a.jpg")
    photo(root / "images/Validation/a.jpg")
    photo(root / "images/b.jpg")
    rows = (
        image(SQUARE, more=' subset="Train" task_id="1"'),
        image(more=' subset="Validation" task_id="2"'),
        image(name="b.jpg", more=' subset="../../x"'),
    )
    (root / "annotations.xml").write_text(xml(*rows))
    assert splits_cvat(root) == ("train", "validation", "../../x")
    source = open_cvat(root, "val")
    assert [source[0].image, len(source)] == [root / "images/Validation/a.jpg", 1]
    assert open_cvat(root, "Train")[0].image == root / "images/Train/a.jpg"
    assert "part 'train' is read; there is also validation" in open_cvat(root).notes[0]
    refused("expected a part 'test', found train, validation", lambda: open_cvat(root, "test"))
    summary = convert(root, tmp_path / "out", things=["car"])
    assert "train 1, val 1" in summary.text()
    assert not (tmp_path / "x").exists()


def test_one_subset_is_a_part_only_by_its_name(tmp_path):
    tree(tmp_path)
    assert splits_cvat(tmp_path) == ()
    for subset, splits in (("default", ()), ("Test", ("test",))):
        (tmp_path / "annotations.xml").write_text(xml(image(SQUARE, more=f' subset="{subset}"')))
        assert splits_cvat(tmp_path) == splits


def test_images_in_folders_elsewhere_or_nowhere(tmp_path):
    (tmp_path / "annotations.xml").write_text(xml(image(SQUARE, name="x/a.jpg"), image(name="x/b.png")))
    source = open_cvat(tmp_path)
    assert [(source[n].image, source[n].file_name, source[n].size) for n in range(2)] == [
        (None, "x/a.jpg", (6, 8)),
        (None, "x/b.png", (6, 8)),
    ]
    assert "sizes are those of the XML" in source.notes[0]
    refused("expected an image file, found none", lambda: convert(tmp_path, tmp_path / "o", things=["all"]))
    photo(tmp_path / "frames/x/a.jpg")
    missing = "expected 'x/b.png' in .*frames or its images/, found none"
    refused(missing, lambda: open_cvat(tmp_path, image_folder="frames")[1])
    refused("pictures: expected a folder of images", lambda: open_cvat(tmp_path, image_folder="pictures"))
    photo(tmp_path / "frames/x/b.png")
    source = open_cvat(tmp_path, image_folder=str(tmp_path / "frames"))
    assert [(source[n].image_id, source[n].file_name) for n in range(2)] == [("a", "a.jpg"), ("b", "b.png")]


def test_names_alike_but_for_their_suffix(tmp_path):
    tree(tmp_path)
    photo(tmp_path / "images/a.png")
    (tmp_path / "annotations.xml").write_text(xml(image(), image(name="a.png")))
    assert [open_cvat(tmp_path)[n].image_id for n in range(2)] == ["a.jpg", "a.png"]
    (tmp_path / "annotations.xml").write_text(xml(image(), image(name="b/a.jpg")))
    refused("found only a.jpg, which may be another picture", lambda: open_cvat(tmp_path)[1])


@pytest.mark.parametrize("name", ["../../secret.jpg", "/etc/secret.jpg", "C:\\\\secret.jpg", "secret.jpg", "x" * 5000])
def test_names_stay_in_the_folder(tmp_path, name):
    photo(tmp_path / "secret.jpg")
    tree(tmp_path / "in")
    (tmp_path / "in/annotations.xml").write_text(xml(image(), image(name=name)))
    refused("annotations.xml: expected .* or its images/, found none", lambda: open_cvat(tmp_path / "in")[1])


def test_sizes_that_differ(tmp_path):
    tree(tmp_path)
    turned_photo(tmp_path / "images/a.jpg", (8, 6))
    assert open_cvat(tmp_path)[0].size == (6, 8)
    photo(tmp_path / "images/a.jpg", (12, 16))
    refused("a.jpg: expected an image of 6×8 .its annotation., found 12×16", lambda: open_cvat(tmp_path)[0])


def test_detection(tmp_path):
    tree(tmp_path)
    assert detect(tmp_path) == "cvat"
    assert detect(tmp_path / "annotations.xml") == "cvat"
    (tmp_path / "annotations.xml").rename(tmp_path / "job.xml")
    assert is_cvat(tmp_path)
    (tmp_path / "voc.xml").write_text("<annotation><filename>a.jpg</filename></annotation>")
    assert is_cvat(tmp_path)
    assert not is_cvat(tmp_path / "voc.xml")
    (tmp_path / "job2.xml").write_text(xml(image()))
    assert not is_cvat(tmp_path)
    refused("expected annotations.xml .CVAT for images 1.1., found none, or several", lambda: open_cvat(tmp_path))
    assert len(open_cvat(tmp_path / "job.xml")) == 1
    assert not is_cvat(tmp_path / "missing")


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        ('<polygon label="car" points="1,1;2;2,3"/>', "polygon 2: expected points x,y;x,y"),
        ('<polygon label="car" points="1,1,2,2,3,3"/>', "polygon 2: expected points x,y;x,y"),
        ('<polygon label="car" points=""/>', "polygon 2: expected points x,y;x,y"),
        ('<polygon label="car"/>', "polygon 2: expected points x,y;x,y"),
        ('<polygon label="car" points="nan,1;2,2;3,3"/>', "polygon 2: expected finite coordinates"),
        ('<polygon label="car" points="1e9,1;2,2;3,3"/>', "polygon 2: expected finite coordinates"),
        ('<polygon points="1,1;2,2;3,3"/>', "polygon 2: expected a label"),
        ('<polygon label="car" points="1,1;2,2;3,3" z_order="up"/>', "a number z_order, found 'up'"),
        ('<box label="car" xtl="5" ytl="1" xbr="1" ybr="2"/>', "box 2: expected a box from its top left"),
        ('<box label="car" xtl="5" ytl="1" xbr="7"/>', "box 2: expected a number ybr, found ''"),
        ('<box label="car" xtl="0" ytl="1" xbr="inf" ybr="3"/>', "box 2: expected finite coordinates"),
        ('<box label="car" xtl="0" ytl="1" xbr="3" ybr="3" rotation="inf"/>', "box 2: expected finite coordinates"),
        ('<ellipse label="car" cx="1" cy="1" rx="-1" ry="1"/>', "ellipse 2: expected radii"),
        ('<ellipse label="car" cx="1" cy="1" rx="nan" ry="1"/>', "ellipse 2: expected radii"),
        ('<ellipse label="car" cx="nan" cy="1" rx="1" ry="1"/>', "ellipse 2: expected finite coordinates"),
        (
            '<mask label="car" rle="1,2" left="0" top="0" width="2" height="2"/>',
            "mask 2: expected run lengths of 4",
        ),
        ('<mask label="car" rle="5,-1" left="0" top="0" width="2" height="2"/>', "mask 2: expected run lengths"),
        ('<mask label="car" rle="nan,4" left="0" top="0" width="2" height="2"/>', "mask 2: expected run lengths"),
        ('<mask label="car" rle="x" left="0" top="0" width="2" height="2"/>', "mask 2: expected run lengths"),
        ('<mask label="car" rle="" left="0" top="0" width="2" height="2"/>', "mask 2: expected run lengths"),
        ('<mask label="car" rle="1e18" left="0" top="0" width="1e9" height="1e9"/>', "mask 2: expected run lengths"),
        ('<mask label="car" rle="4" left="0.5" top="0" width="2" height="2"/>', "mask 2: expected the box of a mask"),
        ('<mask label="car" rle="4" left="0" top="0" width="-2" height="-2"/>', "mask 2: expected the box of a mask"),
        ('<mask label="car" rle="4" left="nan" top="0" width="2" height="2"/>', "mask 2: expected the box of a mask"),
        ('<blob label="car"/>', "expected shapes polygon, .*found <blob>"),
    ],
)
def test_shapes_that_are_none(tmp_path, drawn, message):
    tree(tmp_path, SQUARE, drawn)
    refused(f"annotations.xml: a.jpg: (expected )?{message}", lambda: open_cvat(tmp_path)[0])


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'<!DOCTYPE annotations [<!ENTITY l0 "ha">{LAUGHS}]><annotations>&l11;</annotations>', "XML without a DTD"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotations>&x;</annotations>', "XML without a DTD"),
        ('<!DOCTYPE annotations SYSTEM "http://localhost/x.dtd"><annotations/>', "XML without a DTD"),
        ("<annotations>&x;</annotations>", "XML, found: undefined entity"),
        ("<annotations><image></annotations>", "a name and a size in pixels"),
        ("<annotations><meta></annotations>", "XML, found: mismatched tag"),
        ("<annotations>", "XML, found: no element found"),
        ("<annotations/>", "images .CVAT for images 1.1., found none"),
        ('<annotations><track id="0" label="car"/></annotations>', "images, found tracks of a video"),
        ("<!-- <annotations> --><annotation/>", "<annotations> .*found <annotation>"),
        ('<?xml version="1.0" encoding="nonsense"?><annotations/>', "XML, found"),
        ('<annotations><image name="a" width="0" height="5"/></annotations>', "a name and a size in pixels"),
        ('<annotations><image name="a" width="-3" height="5"/></annotations>', "a name and a size in pixels"),
        ('<annotations><image name="a" width="99999" height="99999"/></annotations>', "at most 100 million pixels"),
        ("<annotations>\x00</annotations>", "XML, found"),
    ],
)
def test_broken_xml(tmp_path, text, message):
    (tmp_path / "annotations.xml").write_text(text)
    refused(f"annotations.xml: .*{message}", lambda: open_cvat(tmp_path))
    assert splits_cvat(tmp_path) == ()


def test_deep_and_long_xml_takes_a_bounded_time(tmp_path):
    start = time.monotonic()
    tree(tmp_path)
    deep = "<meta>" + "<x>" * 60_000 + "</x>" * 60_000 + f"<label><name>{'n' * 10**6}</name></label></meta>"
    (tmp_path / "annotations.xml").write_text(xml(image(SQUARE), meta=deep))
    assert len(open_cvat(tmp_path)[0].regions) == 1
    angles = np.arange(60_000) * (2 * np.pi / 60_000)
    points = ";".join(f"{4 + 3 * x:.5f},{3 + 2 * y:.5f}" for x, y in zip(np.cos(angles), np.sin(angles)))
    assert len(open_cvat(tree(tmp_path, f'<polygon label="car" points="{points}"/>'))[0].regions) == 1
    zigzag = ";".join(f"{n % 2 * 4000},{n / 3e4}" for n in range(60_000))
    tree(tmp_path, f'<polygon label="car" points="{zigzag}"/>')
    refused("expected an outline of at most", lambda: open_cvat(tmp_path)[0])
    assert time.monotonic() - start < 20
