"""docs/scaling.md shows what the calculator says, on costs whose origin it names."""

from app.capacity.costs import sections
from tests.docs.scaling import CALL, COST, DOCUMENT, renewed

TEXT = DOCUMENT.read_text()


def test_outputs_and_values_on_the_page_are_those_of_the_calculator_and_its_costs():
    assert renewed(TEXT) == TEXT, "docs/scaling.md differs: run `make scaling`"


def test_the_page_has_the_load_that_it_promises():
    load = "--users 10000000 --propositions 1000000 --requests-per-s 50000"

    assert any(load in found[2] for found in CALL.finditer(TEXT))


def test_the_page_says_of_each_cost_which_section_of_the_benchmark_measures_it():
    assert {found[1]: found[2] for found in COST.finditer(TEXT)} == sections()
