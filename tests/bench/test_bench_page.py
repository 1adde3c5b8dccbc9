"""The page of a benchmark: what stands in it, and what it makes of results that lack something."""

import itertools
import math
import re
from dataclasses import asdict
from html.parser import HTMLParser
from xml.etree import ElementTree

import made_up
import pytest

from hyperkern import format
from hyperkern.bench import figures, page
from hyperkern.bench.figures import Setting

pytestmark = pytest.mark.usefixtures("small_rates")
VOID = {"meta", "link", "br"}
SPECIAL = "<script>alert(1)</script> & \"quotes\" 'too'"


class Page(HTMLParser):
    """Texts and elements of a page; fails where a tag is not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts, self.titles = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data.replace("\u00a0", " "))

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.texts))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def realistic():
    return made_up.realistic()


@pytest.fixture(scope="module")
def rendered(realistic):
    return page.render(realistic)


def texts(image):
    """The words of an SVG image, with their style; fails where it is not well formed."""
    root = ElementTree.fromstring(image)
    return [
        ("".join(node.itertext()).replace("\u00a0", " "), node.get("style")) for node in root.iter() if is_text(node)
    ]


def is_text(node):
    return node.tag.endswith("}text")


def images(text):
    return re.findall(r"<svg xmlns[^>]*role=.*?</svg>", text, re.S)


def test_everything_appears(realistic, rendered):
    found = Page(rendered)
    for row in realistic.rows:
        for value in (row.case, row.implementation, row.reason):
            assert value is None or value in found.text
    for value in asdict(realistic.machine).values():
        assert value is None or str(value)[:12] in found.text
    assert "316 passed, 24 failed" in found.text
    assert "92 were skipped" in found.text
    assert "150 GFLOP/s, 16 GB/s" in found.text
    assert len(found.all("figure")) == 4 * 2 * len(figures.TITLES)


def test_nothing_comes_from_elsewhere(rendered):
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(|<script|src=", rendered)
    links = [link["href"] for kind in ("a", "link") for link in Page(rendered).all(kind)]
    targets = {attributes.get("id") for _, attributes in Page(rendered).elements}
    assert all(link == "data:," or link[1:] in targets for link in links)


def test_accessible(rendered):
    found = Page(rendered)
    assert found.all("html")[0]["lang"] == "en"
    charts = [one for one in found.all("svg") if "aria-hidden" not in one]
    assert all(one["role"] == "img" and len(one["aria-label"]) > 40 for one in charts)
    assert len(found.all("figcaption")) == len(charts) == len(found.all("figure"))
    assert all(head["scope"] in ("col", "row", "rowgroup") for head in found.all("th"))
    assert len(found.all("caption")) == len(found.all("table"))
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def luminance(color):
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colors_are_seen(scheme):
    # WCAG 2.2: 3 for what is drawn, 4.5 for text.
    colors = {name: pair[scheme] for name, pair in figures.COLORS.items()}
    least = {"ink": 4.5, "muted": 4.5, "ground": 1, "grid": 1}
    assert all(contrast(color, colors["ground"]) >= least.get(name, 3) for name, color in colors.items())
    assert len(set(colors.values())) == len(colors)


def test_texts_are_seen():
    styles = page.render(made_up.result([]))
    schemes = re.findall(r"color-scheme: \w+;([^}]*)}", styles)
    assert len(schemes) == 2
    for i, scheme in enumerate(schemes):
        colors = {name: pair[i] for name, pair in figures.COLORS.items()} | dict(re.findall(r"--(\w+): (#\w+)", scheme))
        for name in ("ink", "muted", "link", "bad"):
            assert contrast(colors[name], colors["ground"]) >= 4.5, name
        assert contrast(colors["muted"], colors["panel"]) >= 4.5


def test_28_implementations_differ_without_color():
    styles = [figures.Mark(number).style for number in range(28)]
    looks = {(s["marker"], s["linestyle"], s["markerfacecolor"] == figures.GROUND) for s in styles}
    assert len(looks) == 28
    assert len({re.sub(r"--s\d|m\w{10}", "", figures.Mark(number).swatch) for number in range(28)}) == 28


def ticks(image, anchor):
    return [text for text, style in texts(image) if f"text-anchor: {anchor}; fill:" in style]


def test_ticks_are_powers(realistic):
    time = page.figure(realistic, "time", "uniformity", 128)
    assert ticks(time, "middle") == [str(n) for n in made_up.SIZES]
    assert ticks(time, "end") == ["1 ms", "10 ms", "100 ms", "1 s", "10 s", "N"]
    memory = ticks(page.figure(realistic, "memory", "clip", 512), "end")
    sizes = {f"{2**power} {unit}" for power in range(10) for unit in ("KiB", "MiB", "GiB")}
    assert len(memory) > 3
    assert set(memory[:-1]) <= sizes


def test_sizes_that_are_no_powers_have_their_own_ticks():
    image = page.figure(made_up.result([made_up.row(n=n) for n in (100, 1000)]), "time", "uniformity", 128)
    assert ticks(image, "middle") == ["100", "1000"]
    image = page.figure(made_up.result([made_up.row(n=n) for n in (1000, 1010)]), "time", "uniformity", 128)
    assert ticks(image, "middle") == ["1024"]  # those would touch


@pytest.mark.parametrize("ratio", [1, 1.5, 7, 90, 1e4, 1e9])
def test_axes_hold_the_values_and_few_ticks(ratio):
    rows = [made_up.row(n=n) | {"floor_ms": 0.3} for n in (512, 1024)]
    for row, ms in zip(rows, (0.37, 0.37 * ratio), strict=True):
        row |= dict.fromkeys(("median_ms", "p20_ms", "p80_ms"), ms)
    image = page.figure(made_up.result(rows), "time", "uniformity", 128)
    written = ticks(image, "end")[:-1]
    assert 2 <= len(written) <= 9
    assert all(tick[0] in "125" for tick in written)
    heights = [y for points in lines(image) for _, y in points]
    assert all(figures.TOP < y < figures.TOP + figures.PLOT for y in heights)


def lines(image):
    """The points of each stretch of each line, the floor not among them."""
    paths = re.findall(r'<g class="line"><path d="([^"]*)"', image)
    stretches = [stretch for path in paths for stretch in path.split("M ")[1:]]
    return [[tuple(map(float, point.split())) for point in stretch.split("L ")] for stretch in stretches]


def test_lines_are_where_the_values_are(realistic):
    points = lines(page.figure(realistic, "time", "uniformity", 128))[-1]  # our own above the others
    rows = [row for row in realistic.rows if (row.case, row.implementation, row.d) == ("uniformity", "hyperkern", 128)]
    steps = [b[0] - a[0] for a, b in itertools.pairwise(points)]
    assert len(points) == len(rows)
    assert max(steps) - min(steps) < 0.25  # doubling N is one step
    slopes = [
        (y - points[0][1]) / math.log(row.median_ms / rows[0].median_ms)
        for (_, y), row in zip(points[1:], rows[1:], strict=True)
    ]
    assert max(slopes) == pytest.approx(min(slopes), rel=0.01)
    assert max(slopes) < 0


def test_failed_has_no_time():
    failed = made_up.row(implementation="wrong", status="failed", reason="relative error 0.5") | {
        "median_ms": 123.456,
        "p20_ms": 123.0,
        "p80_ms": 124.0,
        "error": 0.5,
    }
    text = Page(page.render(made_up.result([made_up.row(), failed]))).text
    assert "failed: relative error 0.5 (error 5.0e-01)" in text
    assert "123" not in text


def test_no_line_crosses_a_size_without_a_time():
    rows = [made_up.row(n=n) for n in (512, 1024)]
    rows += [made_up.row(n=2048, status="failed", reason="wrong")]
    rows += [made_up.row(n=n) for n in (4096, 8192)]
    assert [len(stretch) for stretch in lines(page.figure(made_up.result(rows), "time", "uniformity", 128))] == [2, 2]


def test_names_are_escaped():
    rows = [
        made_up.row(),
        made_up.row(
            case=SPECIAL,
            implementation=SPECIAL,
            package=SPECIAL,
            version=SPECIAL,
            mode=SPECIAL,
            execution=SPECIAL,
            dtype=SPECIAL,
            baseline=SPECIAL,
        ),
    ]
    rows.append(made_up.row(implementation="x\x00y", status="failed", reason=SPECIAL))
    rows[1]["vs_baseline"] = 1.0
    machine = dict.fromkeys(made_up.MACHINE, SPECIAL) | {"threads": 2}
    result = made_up.result(rows, limits={SPECIAL: {"flops": 1e12, "bytes": 1e11}}, machine=machine)
    text = page.render(result)
    assert "<script" not in text
    assert "alert(1)" in Page(text).text
    assert not Page(text).all("script")
    for image in [*images(text), *page.files(result).values()]:
        assert "\x00" not in image
        ElementTree.fromstring(image)
    assert all(re.fullmatch(r"[\w.-]+\.svg", name) for name in page.files(result))


def test_one_row():
    text = page.render(made_up.result([made_up.row(n=1000, d=3)]))
    assert "1 implementation of uniformity, at N = 1000 and D = 3" in Page(text).text
    assert len(images(text)) == 4
    assert "The baseline was not timed." in text


def test_no_rows():
    assert "Nothing was measured." in page.render(made_up.result([]))
    assert page.files(made_up.result([])) == {}


def test_all_skipped():
    rows = [made_up.row(n=n, status="skipped", reason="not installed") for n in (512, 1024)]
    result = made_up.result(rows)
    text = Page(page.render(result)).text
    assert "No implementation was timed." in text
    assert text.count("not installed") == 3  # once for the case, and in each line of the table
    assert page.files(result) == {}
    assert "No value was recorded." in page.figure(result, "time", "uniformity", 128)  # in its label


def test_settings_stand_apart():
    rows = [
        made_up.row(mode=mode, execution=execution, dtype=dtype, n=n)
        for mode in ("forward", "both")
        for execution in ("eager", "cuda graph")
        for dtype in ("float32", "bfloat16")
        for n in (512, 1024)
    ]
    result = made_up.result(rows)
    found = Page(page.render(result))
    assert len(found.all("figure")) == 8 * 4
    assert "uniformity, D = 128, forward and backward, cuda graph, bfloat16" in found.text
    assert len(page.files(result)) == 8 * 4
    assert "uniformity-d128-both-cuda-graph-bfloat16-time.svg" in page.files(result)
    one = page.figure(result, "roofline", "uniformity", 128, setting=Setting("both", "eager", "float32"))
    other = page.figure(result, "roofline", "uniformity", 128, setting=Setting("both", "eager", "bfloat16"))
    assert "matrix rate" in one
    assert "matrix rate" not in other  # whose limits were not measured


def test_none_everywhere():
    optional = ("version", "error", "peak_bytes", "tflops", "gbs", "of_limit", "vs_baseline")
    rows = [made_up.row(n=n, implementation="other") | dict.fromkeys(optional) for n in (512, 1024)]
    text = page.render(made_up.result(rows, machine=dict.fromkeys(made_up.MACHINE), limits={}))
    assert "None" not in text
    assert "unknown machine" in text
    assert len(images(text)) == 4


def test_twenty_implementations_of_one_size():
    rows = [
        made_up.row(implementation=f"implementation number {number}", n=4096, baseline="implementation number 3")
        for number in range(20)
    ]
    result = made_up.result(rows)
    for kind in figures.TITLES:
        image = page.figure(result, kind, "uniformity", 128)
        words = [text for text, _ in texts(image)]
        assert len(re.findall("implementation number", re.search('aria-label="([^"]*)"', image).group(1))) >= 20
        assert all(f"implementation number {number}" in words for number in range(20))
        height = int(re.search(r'height="(\d+)"', image).group(1))
        assert max(float(node.get("y")) for node in ElementTree.fromstring(image).iter() if is_text(node)) < height - 8


def test_captions_name_the_best_and_count_the_others():
    times = ({"median_ms": 30.0 - i, "p20_ms": 29.0 - i, "p80_ms": 31.0 - i} for i in range(10))
    rows = [made_up.row(implementation=f"number {i}", n=4096) | of_row for i, of_row in enumerate(times)]
    text = Page(page.render(made_up.result(rows))).text
    assert "At N = 4096: number 9 21 ms, number 8 22 ms, number 7 23 ms" in text
    assert "number 2 28 ms and 2 more." in text


def test_long_names_are_shortened_with_the_whole_in_the_tooltip():
    name = "an implementation with a name that no legend of this width can hold in full"
    image = page.figure(made_up.result([made_up.row(implementation=name)]), "time", "uniformity", 128)
    assert f"<title>{name}</title>" in image
    assert "…" in image


def test_memory_of_nothing():
    rows = [made_up.row(n=n) | {"peak_bytes": 0} for n in (512, 1024)]
    assert "1 KiB" in page.figure(made_up.result(rows), "memory", "uniformity", 128).replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.00004, "40 ns"), (0.0123, "12.3 µs"), (0.9999, "1 ms"), (1, "1 ms"), (999.96, "1 s"), (123456, "123 s")],
)
def test_times_are_written(value, written):
    assert format.milliseconds(value).replace("\u00a0", " ") == written


@pytest.mark.parametrize(("value", "written"), [(1, "1.00×"), (0.4327, "0.433×"), (12.34, "12.3×"), (345.6, "346×")])
def test_ratios_are_written(value, written):
    assert format.times(value) == written


def test_tables_begin_with_the_fastest(realistic):
    text = page.render(realistic)
    first = re.search(r"<tbody>.*?</tbody>", text, re.S).group(0)
    medians = [float(median.replace("\u202f", "")) for median in re.findall(r"</th><td>([\d.\u202f]+)</td>", first)]
    assert len(medians) == 7
    assert medians == sorted(medians)
    assert first.index("skipped") > first.rindex("×")
