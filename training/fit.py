"""The models: a logistic regression to be measured against, and the XGBoost ranker that serves."""

import numpy as np
import xgboost
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from app.features.assembly import MatrixSpec
from training.dataset import Dataset, NothingToTrainOn

RANKER_PARAMETERS = {
    "objective": "rank:pairwise",
    "eval_metric": "ndcg@10",
    "max_depth": 4,
    "eta": 0.05,
    "min_child_weight": 20.0,
    "subsample": 0.8,
    "colsample_bytree": 0.3,
    "lambda": 5.0,
    "tree_method": "hist",
}
MAX_TREES = 400
PATIENCE_TREES = 40


def matrix(spec: MatrixSpec, dataset: Dataset) -> np.ndarray:
    """The matrix (n, columns) that serving would have assembled when each slate was decided."""
    return spec.assemble(dataset.rows, dataset.slate_at_s, len(dataset))


def fit_logistic_regression(spec: MatrixSpec, dataset: Dataset) -> Pipeline:
    """Probability of a click; codes of texts become one column per text.

    Raises:
        NothingToTrainOn: every impression was clicked, or none.
    """
    clicked = dataset.relevance > 0
    if clicked.all() or not clicked.any():
        raise NothingToTrainOn("all impressions were clicked, or none: there is nothing to tell apart")
    is_category = np.isin(spec.columns, spec.category_columns)
    columns = ColumnTransformer(
        [
            (
                "numbers",
                make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler()),
                np.flatnonzero(~is_category),
            ),
            (
                "texts",
                make_pipeline(
                    SimpleImputer(strategy="constant", fill_value=-1.0, keep_empty_features=True),
                    OneHotEncoder(handle_unknown="ignore"),
                ),
                np.flatnonzero(is_category),
            ),
        ]
    )
    model = make_pipeline(columns, LogisticRegression(max_iter=500, C=0.1))
    return model.fit(matrix(spec, dataset), clicked)


def fit_ranker(spec: MatrixSpec, train: Dataset, validation: Dataset, seed: int) -> xgboost.Booster:
    """Pairwise LambdaMART with as many trees as do best on the validation slates."""
    booster = xgboost.train(
        {**RANKER_PARAMETERS, "seed": seed, "nthread": 2},
        _dmatrix(spec, train),
        num_boost_round=MAX_TREES,
        evals=[(_dmatrix(spec, validation), "validation")],
        early_stopping_rounds=PATIENCE_TREES,
        verbose_eval=False,
    )
    return booster[: booster.best_iteration + 1]


def _dmatrix(spec: MatrixSpec, dataset: Dataset) -> xgboost.DMatrix:
    data = xgboost.DMatrix(matrix(spec, dataset), label=dataset.relevance, feature_names=list(spec.columns))
    data.set_group(dataset.slate_sizes)
    return data
