import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, replace
from html.parser import HTMLParser

import pytest
from fabricated import HOSTILE, PROVENANCE, fabricate
from needs import needs_tool

from autocomp.budget import Budget
from autocomp.errors import UserError
from autocomp.report.html import render, write_report
from autocomp.report.svg import front_svg
from autocomp.rundir import read_run


class Page(HTMLParser):
    """Elements with their attributes, and the text outside of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.scripts = [], "", []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._open = tag

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open == "script":
            self.scripts.append(data)
        elif self._open != "style":
            self.text += data


@pytest.fixture(scope="module")
def text(run, tmp_path_factory):
    own = tmp_path_factory.mktemp("page") / "run"
    shutil.copytree(run, own)
    return write_report(own).read_text()


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_nothing_is_loaded_from_elsewhere(text, page):
    for tag, attributes in page.elements:
        assert "src" not in attributes, tag
        assert not re.match(r"\s*(https?:)?//", attributes.get("href", "")), tag
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag
    policies = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none'")
    assert "http" not in policies[0]
    # The outside check of the run directory looks for this.
    assert not re.findall(r"""<(?:script|link|img)[^>]+(?:src|href)=["']?(https?://[^"'> ]+)""", text)


def test_names_and_reasons_are_text(text, page):
    assert HOSTILE not in text
    assert HOSTILE in page.text
    assert "<img src=x onerror=alert(1)>" in page.text
    assert not [tag for tag, _ in page.elements if tag == "img"]
    assert all("onerror" not in attributes for _, attributes in page.elements)
    assert "<" not in page.scripts[0]


def test_the_page_says_what_a_reader_needs(page):
    for part in (PROVENANCE, "autocomp verify ", "autocomp resume ", "4,000,000 bytes", "its channels are", "torch"):
        assert part in page.text, part


def test_every_point_can_be_picked(run, page):
    data = json.loads(page.scripts[0])
    names = [point.name for point in read_run(run).front]
    assert list(data["points"]) == names
    assert [a["data-point"] for tag, a in page.elements if tag == "button"] == names
    assert data["figures"][0]["data"][1]["customdata"] == names
    assert data["first"] in names
    layers = data["points"][names[0]]["layers"]
    assert len(layers) == 36
    policy = read_run(run).policies[names[0]]
    assert layers[0][2] == policy.layer("features.0.conv.0").weight_bits
    assert layers[0][7:] == [policy.channels["g0"], 16]


def test_a_run_without_a_front_has_a_page(tmp_path):
    text = write_report(fabricate(tmp_path / "run", trials=0, status="interrupted")).read_text()
    assert "No file is on the front" in text
    assert "autocomp resume" in text
    assert len(text) < 100_000  # no chart, so no chart library


def test_a_run_without_network_json_still_shows_bits(run, tmp_path):
    own = tmp_path / "run"
    shutil.copytree(run, own)
    (own / "network.json").unlink()
    (own / "references.json").unlink()
    data = json.loads(Page(write_report(own).read_text()).scripts[0])
    assert len(next(iter(data["points"].values()))["layers"]) == 36


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("run.yaml", "a: [", "is not YAML"),
        ("run.yaml", "- 1", "expected the settings"),
        ("references.json", '[{"name": "float"}]', "the field 'accuracy' is missing"),
        ("journal.sqlite", "not a database, but long enough to be read as one", "is not a journal"),
        ("network.json", "{}", "the field 'layers' is missing"),
    ],
)
def test_a_damaged_run_is_a_fault_that_names_its_file(run, tmp_path, name, content, expected):
    own = tmp_path / "run"
    shutil.copytree(run, own)
    (own / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(expected)) as fault:
        write_report(own)
    assert name in str(fault.value)


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"memory_bytes": 2_000_000}, "2,000,000 bytes of memory"),
        ({"latency_ms": 2.5, "memory_bytes": 64_000}, "2.5 ms and 64,000 bytes of memory"),
        ({"size_bytes": 4_000_000, "accuracy_drop": 0.005}, "4,000,000 bytes and 0.5 points of accuracy lost"),
        ({}, "no bound"),
    ],
)
def test_the_page_spells_a_budget_as_everything_else_does(run, bounds, expected):
    data = read_run(run)
    for device in (False, True):
        facts = {"budget": asdict(Budget(**bounds))}
        settings = {**data.settings, **(facts | {"devices": {"one": facts, "two": facts}} if device else facts)}
        page = render(replace(data, settings=settings))
        assert f"<dd>{expected}</dd>" in page
        assert expected == str(Budget(**bounds))


@pytest.mark.parametrize(
    ("judge", "expected"),
    [
        (None, "accuracy"),
        ({"metric": "mean IoU", "against": "labels", "scale": None}, "mean IoU"),
        ({"metric": "rmse", "against": "labels", "scale": 2.5}, "1 / (1 + rmse / 2.5)"),
        (
            {"metric": "relative fit", "against": "answers", "scale": None},
            "agreement with the float network (relative fit)",
        ),
    ],
)
def test_pictures_and_page_name_what_files_are_judged_by(run, judge, expected):
    data = read_run(run)
    data = replace(data, settings={k: v for k, v in data.settings.items() if k != "judge"} | {"judge": judge})
    page, picture = render(data), front_svg(data)
    assert f"Validation and test: {expected}." in Page(page).text
    assert f"validation, {expected}" in page
    assert f"<title>{data.settings['network']} on {data.settings['hw']}: {expected} over bytes" in picture
    assert "on validation, %" in picture
    assert "validation accuracy" not in page + picture


def test_the_still_picture_is_xml_with_every_point_twice(run):
    data = read_run(run)
    picture = front_svg(data)
    root = ElementTree.fromstring(picture)
    circles = [node for node in root.iter("{http://www.w3.org/2000/svg}circle") if node.get("r") == "5.5"]
    assert len(circles) == 2 * len(data.front)
    assert PROVENANCE in picture


def test_the_script_shows_the_layers_of_the_linked_point(run, tmp_path):
    own = tmp_path / "run"
    shutil.copytree(run, own)
    report = write_report(own)
    name = read_run(own).front[3].name
    command = [
        needs_tool("chromium", "chromium"), "--headless",
        "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
        "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000", "--dump-dom",
        f"{report.as_uri()}#{name}",
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert re.search(rf'id="detail-name">{name}<', dom)
    body = dom.split('id="detail-layers">')[1].split("</tbody>")[0]
    assert body.count("<tr>") == 36
    assert "&lt;script&gt;alert" in body
    assert dom.count('class="main-svg"') >= 2
