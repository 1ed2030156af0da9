import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from tests.training_data import synthetic_dataset
from training.evaluation import Explanation, Scores, evaluate
from training.evaluation_report import Report
from training.gate import Check
from training.report import RunFacts, print_report, render_html

FACTS = RunFacts(
    version="<b>version",
    parameters={"objective": "rank:pairwise", "eta": 0.05, "<b>name": "<b>value"},
    windows={"train": {"slates": 1200}, "test": {"slates": 80}},
    checks=(Check("gain over popularity", True, "+0.1", "> 0", "<b>reason"),),
)
EMPTY_ELEMENTS = {"meta", "img", "br"}


class Outline(HTMLParser):
    """Titles, texts and sources of a page; unbalanced elements are an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.sources, self.titles = [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in EMPTY_ELEMENTS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


@pytest.fixture(scope="module")
def report():
    _, dataset = synthetic_dataset(seed=3, slates=80)
    rng = np.random.default_rng(1)
    clicked = dataset.relevance > 0
    seen = 1.0 / (1.0 + np.exp(-(2.0 * clicked - 1.5 + rng.normal(size=len(dataset)))))
    scored = {
        "random": Scores(rng.random(len(dataset))),
        "popularity": Scores(rng.random(len(dataset)) + 0.5 * clicked),
        "xgboost": Scores(seen, seen),
    }
    explanation = Explanation({"a$b$": 0.75, "<i>": 0.25}, {"a$b$": 0.5, "<i>": 0.25})
    hidden = {"users": seen, "propositions": scored["popularity"].values}
    report = evaluate(scored, dataset, 1, hidden=hidden, explanation=explanation, rounds=50)
    return replace(report, notes=(*report.notes, "<b>note"))


@pytest.fixture(scope="module")
def page(report):
    return render_html(report, FACTS)


def test_the_page_answers_its_questions(page):
    titles = Outline(page).titles

    assert titles == [
        "What the figures say",
        "May it serve?",
        "How good is each ranking?",
        "What does the model gain?",
        "For whom?",
        "Where?",
        "How precise is it when it may choose?",
        "Do its probabilities hold?",
        "What does it show?",
        "What does it go by?",
        "How was it made?",
    ]


def test_the_page_shows_the_figures_of_the_report(report, page):
    gain = report.paired["xgboost-popularity"]["ndcg@10"]

    assert f"{gain.mean:+.4f}" in page
    assert f"95 % {gain.low:+.4f} to {gain.high:+.4f}" in page
    assert f"{report.rankers['random']['all']['mrr']:.4f}" in page
    assert "rank:pairwise" in page
    assert "1,200" in page


def test_the_page_needs_nothing_from_elsewhere(page):
    sources = Outline(page).sources

    assert len(sources) == 5
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert not re.search(r"<script|<link|@import|url\(", page)


def test_the_model_comes_first_and_random_last(page):
    table = page[page.index("How good is each ranking?") :]

    assert table.index("<td>xgboost") < table.index("<td>popularity") < table.index("<td>random")


def test_texts_are_escaped(page):
    assert "&lt;b&gt;version" in page
    assert "&lt;b&gt;value" in page
    assert "&lt;b&gt;reason" in page
    assert "&lt;b&gt;note" in page
    assert "<b>" not in page


def test_a_report_read_from_its_file_gives_the_same_page(report, page):
    assert render_html(Report.from_json(report.to_json()), FACTS) == page


def test_a_report_without_a_click_has_a_page_too(report):
    _, dataset = synthetic_dataset(seed=3, slates=5)
    nothing = replace(dataset, relevance=np.zeros_like(dataset.relevance))
    scores = Scores(np.zeros(len(nothing)))

    empty = evaluate({"xgboost": scores, "random": scores}, nothing, 1, rounds=10)

    assert "Nothing was clicked" in render_html(empty, RunFacts("v"))


def test_the_terminal_shows_rankers_and_notes(report):
    console = Console(file=io.StringIO(), width=200, highlight=False)

    print_report(replace(report, notes=("[b]plain",)), console)

    text = console.file.getvalue()
    gain = report.paired["xgboost-random"]["ndcg@10"]
    assert f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]" in text
    assert f"{report.rankers['popularity']['all']['mrr']:.4f} [" in text
    assert "- [b]plain" in text
