"""What is compiled of a request's loops gives what numpy gives, and reads nothing that it was not given."""

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.adapters import feast_layout
from app.bootstrap.web import COMPILED, warn_unless_compiled
from app.features import kernels
from app.features.affinity import Affinity, History, Traits
from app.features.columns import RaggedColumn
from app.features.rows import Rows
from app.serving import candidates
from tests.builders import DAY_S, HOUR_S, NOON
from tests.unit.test_forest import hard_rows, small_model

ROOT = Path(__file__).parents[2]
NOW_S = NOON.timestamp()
seeds = st.integers(0, 2**32 - 1)


def test_where_there_is_a_compiler_all_is_compiled():
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None or not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip(f"{compiler} or Python's headers are not installed")

    assert kernels.compiled is not None
    assert feast_layout.compiled_layout is not None


def test_the_installation_and_the_warning_know_all_that_is_compiled():
    sources = (path.relative_to(ROOT).with_suffix("").parts for path in (ROOT / "app").rglob("*.pyx"))
    setup = (ROOT / "setup.py").read_text()

    assert {".".join(parts) for parts in sources} == set(COMPILED)
    assert all(f'"{module}"' in setup for module in COMPILED)


def test_without_a_compiler_python_and_numpy_do_it():
    program = (
        "import sys;"
        "sys.modules['app.features.compiled'] = sys.modules['app.adapters.compiled_layout'] = None;"
        "from app.adapters.feast_layout import compiled_layout, decode_timestamp;"
        "from app.features import kernels;"
        "print(kernels.compiled, compiled_layout, decode_timestamp(bytes([8, 1, 16, 2])))"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["None", "None", "1000000002"]


def test_a_worker_says_so_when_nothing_is_compiled(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "app.adapters.compiled_layout", None)

    warn_unless_compiled()

    assert "compiled_layout" in caplog.text and "With a C compiler" in caplog.text
    assert len(caplog.records) == (1 if kernels.compiled is not None else 2)


def both(compute: Callable[[], Any]) -> tuple[Any, Any]:
    """What it gives compiled, and what it gives without."""
    compiled = kernels.compiled, feast_layout.compiled_layout
    if None in compiled:
        pytest.skip("nothing is compiled here")
    of_compiled = compute()
    kernels.compiled = feast_layout.compiled_layout = None
    try:
        return of_compiled, compute()
    finally:
        kernels.compiled, feast_layout.compiled_layout = compiled


# Masks of 8, 16, 32 and 64 bits.
@pytest.mark.parametrize("depth", [2, 4, 5, 6])
@pytest.mark.parametrize("row_count", [0, 1, 70])
@pytest.mark.parametrize("tree_count", [29, 30])
def test_masks_and_scores_are_those_of_numpy(depth, row_count, tree_count):
    model = small_model(max_depth=depth, tree_count=tree_count)
    forest = model.forest
    rng = np.random.default_rng(depth)
    values = hard_rows(model, rng, 300)
    first, second, last = forest.part([4, 0]), forest.part([1]), forest.part([2, 3, 5])
    slots, others = rng.integers(0, 300, row_count), rng.integers(0, 300, row_count)

    def compute():
        masks = first.masks(values[:, [4, 0]])
        pools = [
            (masks, slots),
            (second.masks(values[:, [1]]), others),
            *last.pools(values[:row_count, [2, 3, 5]]),
        ]
        return last.intervals(values[:, [2, 3, 5]]), masks, forest.gathered_scores(masks[7], pools)

    (intervals, masks, scores), (same_intervals, same_masks, same_scores) = both(compute)

    assert forest.dtype.itemsize == {2: 1, 4: 2, 5: 4, 6: 8}[depth]
    np.testing.assert_array_equal(intervals, same_intervals)
    np.testing.assert_array_equal(masks, same_masks)
    np.testing.assert_allclose(scores, same_scores, rtol=1e-6, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(0, 100), st.integers(0, 40), st.integers(0, 2))
def test_columns_of_pairs_are_those_of_numpy(seed, history_length, candidate_count, number_count):
    rng = np.random.default_rng(seed)
    traits = some_traits(rng, number_count)
    shown = rng.integers(0, 5, history_length).astype(float)
    history = History(rng.integers(-1, 60, history_length), shown, rng.integers(0, 3, history_length) * 1.0)
    rows = rng.integers(-1, 60, candidate_count)
    ranks = dict.fromkeys(traits.numbers, (0.0, 1.0, 4.0))

    ours, numpys = both(lambda: Affinity(traits, 0.1, ranks).columns(history, rows))

    np.testing.assert_allclose(ours, numpys, rtol=2e-5, atol=2e-5)


def some_traits(rng: np.random.Generator, number_count: int) -> Traits:
    """Of 60 propositions, in several blocks and some of them without any."""
    codes = RaggedColumn.empty(np.int32)
    for positions, count in ((np.arange(50), 50), (np.arange(40, 60), 60), (np.array([3]), 60)):
        codes = codes.with_rows(
            positions, [rng.choice(30, rng.integers(0, 6), replace=False) for _ in positions], count
        )
    numbers = {
        f"n{n}": np.where(rng.random(60) < 0.2, np.nan, rng.normal(size=60)) for n in range(number_count)
    }
    return Traits(codes, 30, numbers)


def test_a_comparison_leaves_nothing_behind_for_the_next_one():
    rng = np.random.default_rng(1)
    affinity = Affinity(some_traits(rng, 1), 0.1, {"n0": (0.0, 1.0)})
    history = History(np.arange(20), np.ones(20), np.zeros(20))

    before = affinity.columns(history, np.arange(60))
    affinity.columns(History(np.arange(30, 60), np.ones(30), np.ones(30)), np.arange(10))

    np.testing.assert_array_equal(affinity.columns(history, np.arange(60)), before)


@pytest.mark.parametrize("row_count", [0, 1, 50])
@pytest.mark.parametrize("is_one_moment", [True, False])
@pytest.mark.parametrize("prior_count", [None, "one", "each"])
@pytest.mark.parametrize("half_lives_s", [(HOUR_S,), (HOUR_S, DAY_S), (60.0, HOUR_S, DAY_S)])
def test_columns_of_counters_are_those_of_numpy(spec, row_count, is_one_moment, prior_count, half_lives_s):
    rng = np.random.default_rng(row_count)
    whole = dict.fromkeys(spec.base_rates, 1)  # as JSON may have them
    spec = replace(
        spec, half_lives_s=half_lives_s, base_rates=whole, prior_strengths={v.name: whole for v in spec.views}
    )
    view = spec.schema.view("proposition_performance")
    counts = rng.gamma(1.0, 20.0, (row_count, 4, len(half_lives_s)))
    as_of_s = NOW_S - rng.choice([np.nan, np.inf, -60.0, 0.0, 3_599.0, 3_600.0, 86_400.0], row_count)
    now_s = NOW_S if is_one_moment else NOW_S + rng.choice([0.0, 3_600.0], row_count)
    rows = Rows(counts, as_of_s, {})
    prior = {None: None, "one": 1, "each": row_count}[prior_count]
    priors = None if prior is None else rng.uniform(0.01, 0.5, (prior, 3, len(half_lives_s)))

    with np.errstate(invalid="ignore"):  # of a time that is infinite
        (block, rates), (same_block, same_rates) = both(lambda: spec.block(view, rows, now_s, priors))

    np.testing.assert_allclose(block, same_block, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(rates, same_rates, rtol=1e-12)


@given(
    st.lists(st.lists(st.integers(0, 30), max_size=12, unique=True), min_size=1, max_size=6),
    st.lists(st.sampled_from([-1, 0, 1, 2, 10**6]), min_size=31, max_size=31),
)
def test_the_union_of_lists_is_that_of_numpy_whatever_an_earlier_one_left(lists, left):
    if kernels.compiled is None:
        pytest.skip("nothing is compiled here")
    arrays = [np.array(some, np.int32) for some in lists]
    bits = 1 << np.arange(len(lists), dtype=np.uint8)

    def compute(union):
        places = np.array(left, np.intp)
        positions, joined = union(arrays, bits, places)
        return positions.tolist(), joined.tolist(), places[positions].tolist()

    ours, numpys = compute(candidates._compiled_union), compute(candidates._union)

    assert ours == numpys
    assert ours[2] == list(range(len(ours[0])))


def test_rows_that_do_not_exist_are_refused_before_anything_is_read(spec):
    compiled = kernels.compiled
    if compiled is None:
        pytest.skip("nothing is compiled here")
    forest = small_model(max_depth=6).forest
    masks = forest.neutral(3)
    of_64_bits = forest._compiled

    for slot in (-1, 3):
        with pytest.raises(IndexError):
            of_64_bits.gathered_sums(masks[0], [(masks, np.array([0, slot]))], forest.leaves, np.empty(2))
        with pytest.raises(IndexError):
            of_64_bits.joined_masks(masks, np.array([[slot]]), np.empty_like(masks[:1]))
    part = forest.part([0])
    with pytest.raises(IndexError):
        compiled.intervals(
            np.zeros((1, 1), np.float32),
            np.array([1]),
            part._firsts,
            part._ranges,
            forest.cuts,
            np.empty((1, 1), np.intp),
        )
    with pytest.raises(IndexError):
        compiled.union(
            [np.array([5], np.int32)],
            np.ones(1, np.uint8),
            np.zeros(5, np.intp),
            np.empty(1, np.int64),
            np.empty(1, np.uint8),
        )
    traits = some_traits(np.random.default_rng(2), 0)
    for affinity, rows in (
        (Affinity(traits, 0.1, {}), np.array([60])),
        (Affinity(replace(traits, code_count=2), 0.1, {}), np.arange(60)),
    ):
        with pytest.raises(IndexError):
            affinity.columns(History(np.arange(3), np.ones(3), np.ones(3)), rows)


@pytest.mark.parametrize(
    "ranges", [[[0, "one too many"]], [[-1, 0]], [[2, 1]], [[0, 1], [1, 2]], [[0, 1, 2]]]
)
def test_cuts_that_do_not_exist_are_refused(ranges):
    if kernels.compiled is None:
        pytest.skip("nothing is compiled here")
    forest = small_model(max_depth=6).forest
    part = forest.part([0])
    whole = [[len(forest.cuts) + 1 if end == "one too many" else end for end in one] for one in ranges]
    block, found = np.zeros((1, 1), np.float32), np.empty((1, 1), np.intp)

    with pytest.raises((IndexError, ValueError)):
        kernels.compiled.intervals(
            block, np.array([0]), part._firsts[:1], np.array(whole), forest.cuts, found
        )


@pytest.mark.parametrize("part", range(3))
def test_arrays_that_do_not_fit_together_are_refused(part):
    if kernels.compiled is None:
        pytest.skip("nothing is compiled here")
    forest = small_model(max_depth=6).forest
    masks, slots = forest.neutral(3), np.zeros(2, np.intp)
    arguments = [[(masks, slots)], forest.leaves, np.empty(2)]
    arguments[part] = [[(masks[:, :-1].copy(), slots)], forest.leaves[:-1], np.empty(3)][part]

    with pytest.raises(ValueError, match="fit together"):
        forest._compiled.gathered_sums(masks[0], *arguments)


def arguments_of(name: str) -> list[Any]:
    """Of one call of the compiled function of this name that fits together: 3 rows, 1 of them of the history."""
    floats, numbers = np.zeros((3, 2), np.float32), np.zeros(3, np.int64)
    codes = (np.zeros(3, np.int32),), numbers, np.ones(3, np.int32)
    return {
        "pair_columns": [
            *codes, np.full(1, -1, np.int32), numbers, np.ones(1), np.ones(1), np.zeros((3, 1), np.float32),
            0.5, 2.0, 3.0, 1e-12, 3, np.zeros((2, 2), np.float32),
        ],
        "counter_columns": [
            np.zeros((3, 4, 2)), np.zeros(3), np.zeros(3), np.ones(2), np.ones((3, 3, 2)), np.ones(3), 0, 1,
            np.zeros((3, 8), np.float32), np.zeros((3, 3, 2)),
        ],
        "exponents": [
            floats, np.zeros(3, np.float32), np.ones(3, np.uint8), numbers, 0.0, np.zeros((3, 1), np.float32),
        ],
        "union": [
            [np.zeros(2, np.int32)], np.ones(1, np.uint8), np.zeros(1, np.intp), np.zeros(2, np.int64), np.zeros(2, np.uint8),
        ],
    }[name]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "place"),
    [
        *[("pair_columns", place) for place in (1, 2, 3, 4, 5, 6, 7, 13)],
        *[("counter_columns", place) for place in (0, 1, 2, 3, 4, 5, 8, 9)],
        *[("exponents", place) for place in (0, 1, 2, 3, 5)],
        *[("union", place) for place in (1, 2, 3, 4)],
    ],
)
def test_an_array_that_is_one_too_short_is_refused(name, place):
    if kernels.compiled is None:
        pytest.skip("nothing is compiled here")
    call, arguments = getattr(kernels.compiled, name), arguments_of(name)
    call(*arguments)

    arguments[place] = arguments[place][:-1]

    with pytest.raises((ValueError, IndexError)):
        call(*arguments)
