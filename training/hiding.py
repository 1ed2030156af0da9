"""The same slates as if less had been known: how a model does with users and propositions that it does not know."""

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from app.features.affinity import Histories
from app.features.fold import COUNTER_VIEWS
from app.features.rows import Rows
from app.features.schema import EntityName
from training.dataset import Dataset

_OF_USERS = (EntityName.USER, EntityName.USER_CATEGORY)
_OF_PROPOSITIONS = (EntityName.PROPOSITION, EntityName.CONTEXT_PROPOSITION)


def without_user_history(dataset: Dataset) -> Dataset:
    """As if every user came for the first time; profiles are kept."""
    return replace(
        dataset,
        rows=_without_counters(dataset, _OF_USERS, lambda rows: np.ones(len(rows), bool)),
        histories=_kept(dataset.histories, np.zeros(len(dataset.histories.rows), bool)),
    )


def without_proposition_logs(dataset: Dataset, hidden: Collection[str]) -> Dataset:
    """As if nothing had ever happened with some propositions, in the counters and in the users' histories."""
    is_hidden = np.isin(dataset.proposition_ids, list(hidden))
    hidden_rows = np.unique(dataset.trait_rows[is_hidden])
    return replace(
        dataset,
        rows=_without_counters(dataset, _OF_PROPOSITIONS, lambda rows: is_hidden),
        histories=_kept(dataset.histories, ~np.isin(dataset.histories.rows, hidden_rows)),
    )


def some_propositions(dataset: Dataset, share: float, seed: int) -> list[str]:
    """A random share of the propositions that occur in a dataset, sorted."""
    known = np.unique(dataset.proposition_ids)
    rng = np.random.default_rng(seed)
    return sorted(rng.choice(known, round(share * len(known)), replace=False).tolist())


def _without_counters(dataset: Dataset, entities, where) -> dict[str, Rows]:
    changed = {
        name: _emptied(dataset.rows[name], where(dataset.rows[name]))
        for name in (COUNTER_VIEWS[entity] for entity in entities)
        if name in dataset.rows
    }
    return {**dataset.rows, **changed}


def _emptied(rows: Rows, is_hidden: np.ndarray) -> Rows:
    return replace(
        rows,
        counts=np.where(is_hidden[:, None, None], 0.0, rows.counts),
        as_of_s=np.where(is_hidden, np.nan, rows.as_of_s),
    )


def _kept(histories: Histories, is_kept: np.ndarray) -> Histories:
    kept_before = np.concatenate([[0], np.cumsum(is_kept)])
    return Histories(
        kept_before[histories.starts],
        histories.rows[is_kept],
        histories.impressions[is_kept],
        histories.clicks[is_kept],
    )
