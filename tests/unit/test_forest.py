import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.errors import UnsupportedForest
from app.features.forest import Forest

OBJECTIVES = ("rank:pairwise", "rank:ndcg", "binary:logistic", "reg:squarederror")
EXTREMES = np.array(
    [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38, 2.0**24, 2.0**24 - 1],
    np.float32,
)
CODES = np.array([-1.0, -0.5, 0.5, 1.5, 31.0, 32.0, 63.5, 64.0, 1e6], np.float32)


@dataclass(frozen=True)
class Trained:
    booster: xgboost.Booster
    model: dict
    forest: Forest
    matrix: np.ndarray


def parsed(booster: xgboost.Booster) -> dict:
    return json.loads(bytes(booster.save_raw("json")))


def trained(matrix, target, tree_count, feature_types=None, **parameters) -> Trained:
    data = xgboost.DMatrix(matrix, label=target, feature_types=feature_types, enable_categorical=True)
    if parameters["objective"].startswith("rank:"):
        data.set_group([len(target) // 4] * 4)
    booster = xgboost.train({"nthread": 1, "min_child_weight": 0.0, **parameters}, data, tree_count)
    model = parsed(booster)
    return Trained(booster, model, Forest.from_xgboost(model), matrix)


@st.composite
def models(draw) -> Trained:
    """Random data, with columns of numbers, of codes, of few values and of a constant, and a model of them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kinds = draw(st.lists(st.sampled_from(["number", "grid", "code", "constant"]), min_size=1, max_size=7))
    makers = {
        "number": lambda: rng.normal(size=200) * 10.0 ** rng.integers(-3, 4),
        "grid": lambda: rng.integers(-2, 3, 200).astype(float),
        "code": lambda: rng.integers(0, rng.integers(1, 70), 200).astype(float),
        "constant": lambda: np.full(200, 3.0),
    }
    matrix = np.column_stack([makers[kind]() for kind in kinds]).astype(np.float32)
    matrix[rng.random(matrix.shape) < draw(st.sampled_from([0.0, 0.2]))] = np.nan
    noise = rng.normal(size=len(matrix))
    target = np.nan_to_num(matrix / np.maximum(1.0, np.nanstd(matrix, axis=0))).sum(axis=1) + noise
    objective = draw(st.sampled_from(OBJECTIVES))
    if objective != "reg:squarederror":
        target = (target > np.quantile(target, 0.8)).astype(float)
    return trained(
        matrix,
        target,
        tree_count=draw(st.integers(1, 60)),
        feature_types=["c" if kind == "code" else "q" for kind in kinds],
        objective=objective,
        max_depth=draw(st.sampled_from([6, 1, 2, 3, 4, 5, 6])),
        max_cat_to_onehot=draw(st.sampled_from([1, 100])),
        tree_method=draw(
            st.sampled_from(["hist", "approx"] if "code" in kinds else ["hist", "approx", "exact"])
        ),
        num_parallel_tree=draw(st.sampled_from([1, 1, 2])),
        gamma=draw(st.sampled_from([0.0, 0.0, 0.0, 1.0])),
        eta=draw(st.sampled_from([0.1, 1.0])),
    )


def hard_rows(trained: Trained, rng: np.random.Generator, row_count: int) -> np.ndarray:
    """Rows of seen values, thresholds, their neighbours, codes in and out of range, and extremes."""
    columns = []
    for column in range(trained.matrix.shape[1]):
        thresholds = np.array(
            [
                value
                for tree in trained.model["learner"]["gradient_booster"]["model"]["trees"]
                for value, of, left in zip(
                    tree["split_conditions"], tree["split_indices"], tree["left_children"], strict=True
                )
                if left >= 0 and of == column
            ],
            np.float32,
        )
        up, down = np.nextafter(thresholds, np.float32(np.inf)), np.nextafter(thresholds, np.float32(-np.inf))
        values = np.concatenate([trained.matrix[:20, column], thresholds, up, down, CODES, EXTREMES])
        columns.append(rng.choice(values, row_count))
    return np.column_stack(columns).astype(np.float32)


def assert_scores(scores: np.ndarray, expected: np.ndarray) -> None:
    assert scores.dtype == np.float32
    np.testing.assert_array_less(np.abs(scores - expected), 1e-5 * np.maximum(1.0, np.abs(expected)))


@settings(max_examples=120, deadline=None)
@given(models(), st.integers(0, 2**32 - 1))
def test_scores_are_those_of_xgboost_even_at_thresholds_and_extremes(trained, seed):
    rows = hard_rows(trained, np.random.default_rng(seed), 300)

    scores = trained.forest.scores(trained.forest.part(slice(None)).masks(rows))

    assert_scores(scores, trained.booster.inplace_predict(rows))


@settings(max_examples=60, deadline=None)
@given(models(), st.data())
def test_masks_of_any_parts_of_the_columns_join_to_those_of_all(trained, data):
    rows = hard_rows(trained, np.random.default_rng(data.draw(st.integers(0, 99))), 50)
    part_of_column = data.draw(st.lists(st.integers(0, 2), min_size=rows.shape[1], max_size=rows.shape[1]))
    order = data.draw(st.permutations(range(rows.shape[1])))

    joined = trained.forest.neutral(len(rows))
    for part in range(3):
        columns = [column for column in order if part_of_column[column] == part]
        joined &= trained.forest.part(columns).masks(rows[:, columns])

    np.testing.assert_array_equal(joined, trained.forest.part(slice(None)).masks(rows))


@settings(max_examples=60, deadline=None)
@given(models(), st.integers(0, 2**32 - 1))
def test_rows_lie_in_the_intervals_of_others_where_all_their_values_have_the_same(trained, seed):
    part, rng = trained.forest.part(slice(None)), np.random.default_rng(seed)
    rows = hard_rows(trained, rng, 200)
    others = np.where(rng.random(rows.shape) < 0.9, rows, hard_rows(trained, rng, 200)).astype(np.float32)
    intervals = part.intervals(rows)

    lie_in = part.lies_in(others, intervals)

    np.testing.assert_array_equal(lie_in, (part.intervals(others) == intervals).all(axis=0))


def small_model(**parameters) -> Trained:
    rng = np.random.default_rng(5)
    matrix = rng.normal(size=(400, 6)).astype(np.float32)
    target = np.sin(3 * matrix[:, 0]) * matrix[:, 3] + matrix[:, 5]
    return trained(matrix, target, **{"tree_count": 30, "objective": "reg:squarederror", **parameters})


@pytest.mark.parametrize("row_count", [0, 1, 7, 3_000])
def test_rows_gathered_from_pools_score_as_the_rows_that_they_make_up(row_count):
    forest = (model := small_model(max_depth=6)).forest
    rng = np.random.default_rng(1)
    user, categories, candidates = model.matrix[:1, :2], model.matrix[:8, 2:3], model.matrix[:, 3:]
    category_of, slots = rng.integers(0, 8, row_count), rng.integers(0, 400, row_count)
    rows = np.hstack([np.repeat(user, row_count, axis=0), categories[category_of], candidates[slots]])

    scores = forest.gathered_scores(
        forest.part([0, 1]).masks(user)[0],
        [
            (forest.part([2]).masks(categories), category_of),
            (forest.part(slice(3, 6)).masks(candidates), slots),
        ],
    )

    assert len(scores) == row_count
    assert_scores(scores, model.booster.inplace_predict(rows))


def test_rows_looked_up_where_they_are_summed_score_as_their_masks():
    forest = (model := small_model(max_depth=6)).forest
    of_all, shared, own = model.matrix[:1, :2], forest.part([0, 1]), forest.part(slice(2, 6))
    rows = np.hstack([np.repeat(of_all, len(model.matrix), axis=0), model.matrix[:, 2:]])

    pools = own.pools(model.matrix[:, 2:])
    scores = forest.gathered_scores(shared.masks(of_all)[0], pools)

    assert len(pools) == len(own.positions) > 1
    assert_scores(scores, model.booster.inplace_predict(rows))


def test_the_pool_of_a_column_holds_its_masks_also_at_the_borders_of_float32():
    forest = (model := small_model(max_depth=6)).forest
    borders = np.array(
        [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38], np.float32
    )

    for column in forest.split_columns.tolist():
        own = forest.part([column])
        values = np.concatenate([borders, model.matrix[:, column]])[:, None]
        ((masks, slots),) = own.pools(values)
        np.testing.assert_array_equal(masks[slots], own.masks(values))


def test_scoring_leaves_the_masks_as_they_were():
    forest = (model := small_model()).forest
    masks = forest.part(slice(None)).masks(model.matrix)
    before = masks.copy()

    forest.scores(masks)
    forest.gathered_scores(masks[0], [(masks, np.arange(400)), (masks, np.arange(400))])

    np.testing.assert_array_equal(masks, before)


def test_threads_that_score_at_the_same_time_do_not_disturb_each_other():
    forest = (model := small_model(max_depth=6, tree_count=100)).forest
    part = forest.part(slice(None))
    expected = forest.scores(part.masks(model.matrix))

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: forest.scores(part.masks(model.matrix)), range(200)))

    assert all(np.array_equal(scores, expected) for scores in answers)


def test_a_sliced_booster_scores_with_its_own_trees_only():
    model = small_model()
    first_ten = model.booster[:10]

    forest = Forest.from_xgboost(parsed(first_ten))

    assert forest.tree_count == 10
    scores = forest.scores(forest.part(slice(None)).masks(model.matrix))
    assert_scores(scores, first_ten.inplace_predict(model.matrix))


@pytest.mark.parametrize(
    "parameters", [{"tree_count": 0}, {"gamma": 1e9}, {"gamma": 1e9, "tree_method": "exact"}]
)
def test_without_any_split_every_row_scores_the_same(parameters):
    forest = (model := small_model(**parameters)).forest

    scores = forest.scores(forest.part(slice(None)).masks(model.matrix))

    assert forest.split_columns.size == 0
    assert_scores(scores, model.booster.inplace_predict(model.matrix))


@pytest.mark.parametrize(("depth", "bits"), [(3, 8), (4, 16), (5, 32), (6, 64)])
def test_masks_are_no_wider_than_the_largest_tree(depth, bits):
    forest = small_model(max_depth=depth).forest

    assert forest.dtype == np.dtype(f"uint{bits}")


def chain_model(leaf_count: int, deep_side: str) -> dict:
    """A model of one tree that is a list: every split has a leaf on one side and the next split on the other.

    Its leaves lie in [-inf, 1), [1, 2), ... of column 0; their values are their positions in the list.
    """
    node_count = 2 * leaf_count - 1
    left, right, parents = [-1] * node_count, [-1] * node_count, [2**31 - 1] * node_count
    conditions = [0.0] * node_count
    split = 0
    for position in range(leaf_count - 1):
        left[split], right[split] = children = 2 * position + 1, 2 * position + 2
        leaf, deeper = children if deep_side == "right" else reversed(children)
        parents[leaf] = parents[deeper] = split
        conditions[split] = float(position + 1 if deep_side == "right" else leaf_count - 1 - position)
        conditions[leaf] = float(position)
        split = deeper
    conditions[split] = float(leaf_count)
    model = parsed(small_model(tree_count=1).booster)
    tree = model["learner"]["gradient_booster"]["model"]["trees"][0]
    tree.update(left_children=left, right_children=right, parents=parents, split_conditions=conditions)
    for name in ("split_indices", "default_left", "split_type"):
        tree[name] = [0] * node_count
    for name in ("base_weights", "loss_changes", "sum_hessian"):
        tree[name] = [0.0] * node_count
    tree["tree_param"]["num_nodes"] = str(node_count)
    return model


@pytest.mark.parametrize("deep_side", ["left", "right"])
def test_a_tree_of_64_leaves_is_scored_and_one_of_65_refused(deep_side):
    model = chain_model(64, deep_side)
    booster = xgboost.Booster({"nthread": 1})
    booster.load_model(bytearray(json.dumps(model).encode()))
    forest = Forest.from_xgboost(model)
    rows = np.zeros((64, 6), np.float32)
    rows[:, 0] = np.arange(64)

    scores = forest.scores(forest.part(slice(None)).masks(rows))

    assert len(np.unique(scores)) == 64
    assert_scores(scores, booster.inplace_predict(rows))
    with pytest.raises(UnsupportedForest, match="leaves"):
        Forest.from_xgboost(chain_model(65, deep_side))


def test_a_bushy_tree_of_64_leaves_is_scored_and_one_of_65_refused():
    bushy = {"grow_policy": "lossguide", "max_depth": 0, "tree_count": 3}
    model = small_model(**bushy, max_leaves=64)

    scores = model.forest.scores(model.forest.part(slice(None)).masks(model.matrix))

    assert_scores(scores, model.booster.inplace_predict(model.matrix))
    with pytest.raises(UnsupportedForest, match="65 leaves"):
        small_model(**bushy, max_leaves=65)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"booster": "dart"}, "dart"),
        ({"booster": "gblinear"}, "gblinear"),
        ({"objective": "reg:absoluteerror"}, "reg:absoluteerror"),
        ({"objective": "multi:softprob", "num_class": 3}, "several outputs"),
    ],
)
def test_other_kinds_of_models_are_refused_by_name(parameters, reason):
    matrix = np.random.default_rng(0).normal(size=(60, 3))

    with pytest.raises(UnsupportedForest, match=reason):
        trained(matrix, np.arange(60) % 3, 2, **{"objective": "reg:squarederror", **parameters})


def test_several_targets_are_refused():
    matrix = np.random.default_rng(0).normal(size=(60, 3))

    with pytest.raises(UnsupportedForest, match="several outputs"):
        trained(matrix, matrix[:, :2], 2, objective="reg:squarederror", multi_strategy="multi_output_tree")


@pytest.mark.parametrize("model", [{}, {"learner": {}}, {"learner": {"learner_model_param": None}}, []])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(UnsupportedForest, match="not the JSON"):
        Forest.from_xgboost(model)


def test_a_column_that_is_number_and_category_at_once_is_refused():
    model = parsed(small_model().booster)
    tree = model["learner"]["gradient_booster"]["model"]["trees"][0]
    tree["split_type"][0] = 1
    tree.update(categories=[1], categories_nodes=[0], categories_segments=[0], categories_sizes=[1])

    with pytest.raises(UnsupportedForest, match="category by another"):
        Forest.from_xgboost(model)


def test_tables_larger_than_allowed_are_refused():
    model = parsed(small_model().booster)

    with pytest.raises(UnsupportedForest, match="bytes"):
        Forest.from_xgboost(model, max_table_bytes=1_000)


def test_a_block_of_other_columns_is_refused():
    part = small_model().forest.part([0, 1])

    with pytest.raises(ValueError, match="expected 2 columns"):
        part.masks(np.zeros((1, 3), np.float32))
