"""The page opens without a network, runs nothing, hides nothing that matters, and survives whatever the data call themselves."""

import base64
import json
import re
import shutil

import nbformat
import pytest
from bs4 import BeautifulSoup

from mlops_core.core import RECORD_TYPE
from mlops_core.page import PAGE_BYTES, aligned, build_index, card, in_words, inert, page_cells, render

NB = nbformat.v4
EVIL = '<script>alert(1)</script><img src=x onerror=alert(1)>"}</style>'


def code(source="1 + 1", *outputs, **metadata):
    return NB.new_code_cell(source, outputs=list(outputs), metadata=metadata)


def output(data=None, kind="display_data", **more):
    return NB.new_output(kind, data=data, **more) if data else NB.new_output("stream", **more)


def figure(alt=None):
    return output({"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"}, metadata={"image/png": {"alt": alt}} if alt else {})


SETTINGS = code("seed: int = 0  # drives everything [0, 9]\nname: str = ''  # what it is called", tags=["parameters"])
RUN = {
    "run_id": "20260301T090000Z-abc123", "case": "coin", "status": "succeeded", "question": "Is the coin fair?", "verdict": "It seems so.",
    "headline": [
        {"name": "heads", "value": 0.512, "low": 0.490, "high": 0.534, "limit": 0.5, "greater_is_better": True},
        {"name": "error", "value": 0.0321, "limit": 0.02, "greater_is_better": False, "unit": "bits"},
        {"name": "tosses", "value": 2000},
    ],
    "results": {}, "data": {"name": "coin", "title": "A coin", "period": "March 2026", "rows": 2000, "fingerprint": "77d0aa"},
    "parameters": {"seed": 3, "name": ""}, "command": "mlops report coin -p seed 3", "started": "2026-03-01T09:00:00+00:00",
    "timings": {"duration_seconds": 2.4}, "code_revision": "e773408", "code_fingerprint": "c0de", "environment": {"python": "3.11.7"},
}  # fmt: skip


def page(tmp_path, *cells, run=RUN, previous=None):
    nbformat.write(NB.new_notebook(cells=[SETTINGS, *cells]), tmp_path / "report.ipynb")
    return render(tmp_path, run, previous)


def soup(html):
    return BeautifulSoup(html, "html.parser")


@pytest.mark.parametrize("value,item,text", [
    (0.78695, {"low": 0.7751, "high": 0.7988}, "0.787"), (548.3, {"low": 521.0, "high": 579.0}, "548"), (0.78695, None, "0.7870"),
    (1234567, None, "1,234,567"), (0, None, "0"), (0.0, None, "0"), (-0.5, None, "−0.5000"), (None, None, "–"), ("gam", None, "gam"),
    (True, None, "True"), (0.5, {"low": 0.5, "high": 0.5}, "0.5000"), (0.5, {"low": "x", "high": 1}, "0.5000"), (1e-12, None, "1e−12"),
    (1e300, {}, f"{1e300:,.0f}"),
])  # fmt: skip
def test_numbers_have_the_digits_they_deserve(value, item, text):
    assert in_words(value, item) == text


@pytest.mark.parametrize("value,limit,greater,state,words", [
    (0.79, 0.785, True, "met", "✓ meets at least 0.785"), (0.78, 0.785, True, "missed", "✗ misses at least 0.785"),
    (0.13, 0.134, False, "met", "✓ meets at most 0.134"), (0.14, 0.134, False, "missed", "✗ misses at most 0.134"),
    (0.785, 0.785, True, "met", "✓ meets at least 0.785"), (0.79, 0.785, None, "met", "✓ meets at least 0.785"),
    (None, 0.785, True, None, None), (0.79, None, True, None, None),
])  # fmt: skip
def test_a_limit_is_met_or_missed_in_its_direction(value, limit, greater, state, words):
    shown = card({"name": "x", "value": value, "limit": limit, "greater_is_better": greater})
    assert (shown.get("state"), shown.get("limit")) == (state, words)


def test_a_value_is_not_rounded_onto_its_limit():
    near = {"name": "brier", "value": 0.1342, "low": 0.128, "high": 0.140, "limit": 0.134, "greater_is_better": False}
    assert (card(near)["value"], card(near)["limit"]) == ("0.1342", "✗ misses at most 0.134")


HALF = {"value": 0.5, "low": 0.4, "high": 0.6}


def test_a_label_is_what_people_read():
    assert card({"name": "ndcg_at_10", "label": "NDCG@10", "value": 0.4})["name"] == "NDCG@10" and card({"name": "x", "value": 1})["name"] == "x"


def test_numbers_in_tables_stand_in_line():
    head = "<tr><th></th><th>model</th><th>error</th><th>n</th></tr>"
    rows = [("gam", "−0.5 %", "1,000"), ("a" * 50, "too few", ""), ("lstm", "1e-05", "7")]
    body = "".join("<tr><th>row</th>" + "".join(f'<td class="data">{cell}</td>' for cell in row) + "</tr>" for row in rows)
    table = BeautifulSoup(aligned(f"<table>{head}{body}</table>"), "html.parser")
    assert [cell.get_text() for cell in table("th", class_="number")] == ["error", "n"]
    assert len(table("td", class_="number")) == 6 and [cell.get_text() for cell in table("td", class_="words")] == ["a" * 50]
    assert len(table("td", class_="data")) == 9, "classes that were there stay"
    assert aligned("<p>no table</p><table></table>") == "<p>no table</p><table></table>"


@pytest.mark.parametrize("before,after,words,direction", [
    ({"value": 0.5}, {"value": 0.5}, "unchanged", ""),
    ({"value": 0.5}, {"value": 0.6, "greater_is_better": True}, "▲ +0.1000, better", "better"),
    ({"value": 0.5}, {"value": 0.4, "greater_is_better": True}, "▼ −0.1000, worse", "worse"),
    ({"value": 0.5}, {"value": 0.4, "greater_is_better": False}, "▼ −0.1000, better", "better"),
    (HALF, {"value": 0.6, "low": 0.5, "high": 0.7, "greater_is_better": True}, "▲ +0.10, within noise", ""),
    (HALF, {"value": 0.8, "low": 0.7, "high": 0.9, "greater_is_better": False}, "▲ +0.30, worse, beyond noise", "worse"),
    ({"value": "gam"}, {"value": "xgboost"}, "changed", ""), ({"value": None}, {"value": 1}, "changed", ""),
])  # fmt: skip
def test_a_change_says_in_words_what_its_colour_says(before, after, words, direction):
    shown = card({"name": "x"} | after, before)
    assert (shown["change"], shown["direction"]) == (words, direction)


HOSTILE = [
    "<script>x()</script>", "<SCRIPT SRC=//far.away/x.js></SCRIPT>", '<img src="http://far.away/x.png">', '<img src=x onerror="x()">',
    '<iframe src="https://far.away"></iframe>', '<object data="x.swf"></object>', '<link rel="stylesheet" href="https://far.away/x.css">',
    '<style>@import "https://far.away/x.css";</style>', '<style>p { background: url(https://far.away/x.png) }</style>',
    '<p style="background: url(https://far.away/x.png)">x</p>', '<a href="javascript:x()">x</a>', '<form action="https://far.away"><input></form>',
    '<svg><image href="https://far.away/x.png"/><use xlink:href="https://far.away/x.svg"/></svg>', "<!-- <script>x()</script> -->",
    '<video src="https://far.away/x.mp4" poster="https://far.away/x.png"></video>', '<meta http-equiv="refresh" content="0; url=https://far.away">',
    '<base href="https://far.away">', '<img srcset="https://far.away/x.png 2x">', '<details ontoggle="x()" open>x</details>',
    '<img src="data:text/html,x">', '<a href=" JaVaScRiPt:x()">x</a>', '<iframe srcdoc="<script>x()</script>"></iframe>',
]  # fmt: skip


@pytest.mark.parametrize("html", HOSTILE)
def test_nothing_that_runs_or_loads_gets_through(html):
    assert not re.search(r"<script|far\.away|x\(\)|onerror|ontoggle|javascript|x\.swf|data:text|<form", inert(html), re.I)


def test_what_is_harmless_stays():
    kept = '<table class="a b"><tr><td style="color: red">1</td></tr></table><img alt="x" src="data:image/png;base64,AA"/><a href="https://a.b">c</a>'
    assert inert(kept) == kept
    assert inert("<style>.x td { color: red }</style>") == "<style>.x td { color: red }</style>"
    assert inert('<a href="../20_credit.ipynb">lesson</a>') == "<a>lesson</a>"


def test_the_page_shows_one_form_of_each_output_and_no_machinery(tmp_path):
    html = page(
        tmp_path,
        NB.new_markdown_cell("# The coin\n\n> A quote.\n\n**Chapter** 9, X · **Read** 5 min · **Previous** [a](a.ipynb)\n\nAfter."),
        NB.new_markdown_cell("## Toss\n\n```bash\n# a comment\n**Chapter** one\n```"),
        code("x", output(name="stderr", text="\x1b[31mUserWarning\x1b[0m: 50%|#"), output(name="stdout", text="\x1b[1mprinted\x1b[0m <b>")),
        code("what_if()", output({"text/markdown": "Before the question."}),
             output(name="stdout", text="What if: the coin were bent?\nand more"), figure("A bent coin")),
        code("widget", output({"application/vnd.jupyter.widget-view+json": {"model_id": "abc"}, "text/plain": "VBox(children=...)"})),
        code("record()", output({RECORD_TYPE: {"a": 1}, "text/plain": "recorded: a"})),
        code("frame", output({"text/html": "<table class='dataframe'><tr><td>cell</td></tr></table>", "text/plain": "text form"})),
        code("display(Markdown())", output({"text/markdown": "**bold** number", "text/plain": "<Markdown>"})),
        code("plot()", figure()),
    )  # fmt: skip
    text, shown = soup(html).get_text(), soup(html)
    assert shown.title.text.startswith("The coin") and len(shown("h1")) == 1 and shown.h1.text == "Is the coin fair?"
    assert "Previous" not in text and "# a comment" in text and "After." in text
    for hidden in ("VBox", "recorded:", "text form", "<Markdown>", "<Figure>", "\x1b"):
        assert hidden not in text
    assert "printed <b>" in text and shown.find("strong").text == "bold" and shown.find("td", string="cell")
    assert shown.find(class_="noise").find_parent(class_="code") and "UserWarning" in shown.find(class_="noise").text
    asked = shown.find(class_="what-if")
    assert asked.find(class_="question").text == "What if: the coin were bent?" and "and more" in asked.text
    assert asked.img["alt"] == "A bent coin" and "Before the question." in text and "Before the question." not in asked.text
    assert [image["alt"] for image in shown("img")] == ["A bent coin", "Figure without a description"]


def test_code_is_folded_away_behind_a_toggle_without_a_script(tmp_path):
    html = page(tmp_path, code("secret = 1"))
    shown = soup(html)
    assert not shown("script") and not [d for d in shown("details") if d.has_attr("open")]
    assert not shown.find(id="all-code").has_attr("checked") and shown.find("label", attrs={"for": "all-code"})
    assert all(block.find(class_="highlight") for block in shown(class_="code"))
    style = shown.style.text
    assert re.search(r"\.code \{ display: none", style) and "#all-code:checked ~ .page .code" in style


def test_the_first_screen_has_all_that_was_promised(tmp_path):
    lower = RUN["headline"][0] | {"value": 0.4, "low": 0.39, "high": 0.41}
    before = RUN | {"run_id": "20260228T090000Z-000000", "parameters": {"seed": 0, "name": ""}, "headline": [lower]}
    top = " ".join(soup(page(tmp_path, run=RUN, previous=before)).header.get_text(" ").split())
    for promised in (
        "Is the coin fair?", "It seems so.", "0.512", "0.490 to 0.534", "✓ meets at least 0.5", "▲ +0.112, better, beyond noise",
        "✗ misses at most 0.02 bits", "new in this run", "2,000", "A coin, March 2026, 2,000 rows", "fingerprint 77d0aa",
        "mlops report coin -p seed 3", "20260301T090000Z-abc123", "20260228T090000Z-000000 , which differs in parameters",
    ):  # fmt: skip
        assert promised in top, promised
    first = soup(page(tmp_path)).header.get_text()
    assert "first finished run" in first and "new in this run" not in first


def test_whatever_the_data_call_themselves_is_text(tmp_path):
    run = RUN | {
        "case": EVIL, "question": EVIL, "verdict": EVIL, "headline": [{"name": EVIL, "value": EVIL, "unit": EVIL}], "command": EVIL,
        "data": {"title": EVIL, "period": EVIL, "fingerprint": EVIL, "rows": EVIL}, "parameters": {"seed": 0, "name": EVIL},
        "code_revision": EVIL, "environment": {"python": EVIL},
    }  # fmt: skip
    cells = [NB.new_markdown_cell(f"# {EVIL}"), NB.new_markdown_cell(f"## Data\n{EVIL}")]
    cells += [code("x", output({kind: EVIL})) for kind in ("text/markdown", "text/html", "text/plain")]
    cells += [code(f'"{EVIL}"', output(name="stdout", text=EVIL), output(name="stderr", text=EVIL), figure(EVIL))]
    shown = soup(page(tmp_path, *cells, run=run, previous=run))
    assert not shown("script") and shown.h1.text == EVIL and shown.find(class_="command").text == EVIL
    assert len(shown("style")) == 1 and "<" not in shown.style.text and 'content: "_script_' in shown.style.text
    assert not [tag for tag in shown(True) if any(name.startswith("on") for name in tag.attrs)]


def test_nothing_is_loaded_and_the_browser_is_told_so(tmp_path):
    html = page(tmp_path, NB.new_markdown_cell("![x](https://far.away/x.png) ![y](x.png) [z](https://far.away)"), code("x", figure("x")))
    shown = soup(html)
    policy = shown.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
    assert "default-src 'none'" in policy and "img-src data:;" in policy and "script-src" not in policy
    for tag in shown(True):
        for name in ("src", "srcset", "data", "poster", "xlink:href"):
            assert tag.get(name, "data:").startswith("data:"), tag
        assert tag.name == "a" or tag.get("href", "data:").startswith("data:"), tag
    assert "url(" not in str(shown.style) and "@import" not in str(shown.style)
    assert all(image.has_attr("alt") for image in shown("img"))


def test_phone_and_print(tmp_path):
    html = page(tmp_path)
    assert soup(html).find("meta", attrs={"name": "viewport"})["content"] == "width=device-width, initial-scale=1"
    assert re.search(r"@page \{ @bottom-left \{ content: \"coin · 20260301T090000Z-abc123\"", html) and "size: A4" in html


def test_the_contents_lead_to_the_headings(tmp_path):
    shown = soup(page(tmp_path, NB.new_markdown_cell("## Why & how\nx"), NB.new_markdown_cell("### Deeper\n\n## Größe")))
    links = [(link.text, link["href"][1:]) for link in shown.nav("a")]
    assert [text for text, _ in links] == ["Why & how", "Größe", "About this run"]
    assert all(shown.find(id=anchor) for _, anchor in links)


def test_the_parameters_are_listed_with_what_they_mean(tmp_path):
    row = soup(page(tmp_path)).find("code", string="seed").find_parent("tr").get_text(" ")
    assert "3" in row and "(default 0)" in row and "drives everything" in row


def test_the_page_stays_small_whatever_is_shown(tmp_path):
    picture = base64.b64encode(b"0" * 150_000).decode()
    cells = [code("x", output({"image/png": picture})) for _ in range(40)]
    cells += [code("x", output(name="stdout", text='"<' * 400_000)), code("x", output({"text/html": "<p>" + "x" * 900_000 + "</p>"}))]
    html = page(tmp_path, *cells)
    assert len(html.encode()) < PAGE_BYTES
    assert 10 < len(soup(html)("img")) < 40 and "it is in report.ipynb" in html and "An output of 900 kB is left out" in html


def test_an_output_as_large_as_a_figure_is_not_left_out():
    parts = page_cells(NB.new_notebook(cells=[code("x", output({"image/png": "A" * 300_000}))]))[0]["parts"]
    assert parts[0]["kind"] == "figure"


def keep(reports, run_id, content, *files, case="coin"):
    folder = reports / case / run_id
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_text("x")
    if content is not None:
        (folder / "results.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_the_index_lists_every_run_whatever_its_state(tmp_path):
    keep(tmp_path, "20260301T090000Z-aaaaaa", RUN, "report.html", "report.ipynb")
    keep(tmp_path, "20260302T090000Z-bbbbbb", {"status": "failed", "message": f"cell [2]: {EVIL}"}, "report.ipynb")
    keep(tmp_path, "20260303T090000Z-cccccc", None, "report.ipynb")
    keep(tmp_path, "20260304T090000Z-dddddd", '{"status": "succ')
    odd = {"name": [], "value": {"low": 1}, "low": "x", "high": [], "limit": "y"}
    keep(tmp_path, "20260305T090000Z-eeeeee", {"status": "succeeded", "headline": [odd], "verdict": [EVIL]})
    keep(tmp_path, "20260306T090000Z-ffffff", RUN, case="my case & more")
    (tmp_path / "notes.txt").write_text("x")
    shown = soup(build_index(tmp_path).read_text())
    assert [badge.text for badge in shown(class_="badge")] == ["succeeded", "unreadable", "unfinished", "failed", "succeeded", "succeeded"]
    assert not shown("script") and EVIL in shown.text
    assert "heads 0.512" in " ".join(shown.text.split()) and "It seems so." in shown.text
    links = [link["href"] for link in shown("a")]
    assert "coin/20260301T090000Z-aaaaaa/report.html" in links and "coin/20260302T090000Z-bbbbbb/report.ipynb" in links
    assert "my%20case%20%26%20more/20260306T090000Z-ffffff/results.json" in links
    assert "coin/20260302T090000Z-bbbbbb/report.html" not in links


def test_the_index_is_rebuilt_not_appended_to(tmp_path):
    first = keep(tmp_path, "20260301T090000Z-aaaaaa", RUN)
    keep(tmp_path, "20260302T090000Z-bbbbbb", RUN)
    once = build_index(tmp_path).read_text()
    assert build_index(tmp_path).read_text() == once and once.count("20260301T090000Z-aaaaaa") > 0
    shutil.rmtree(first)
    (tmp_path / "index.html").write_text("garbage")
    assert "aaaaaa" not in build_index(tmp_path).read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"coin", "index.html"}


def test_an_empty_folder_has_an_index(tmp_path):
    assert "No runs yet" in build_index(tmp_path).read_text()
