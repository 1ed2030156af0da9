"""How slates are made."""

from datetime import timedelta

from pydantic import BaseModel, ConfigDict, Field

from app.domain.rules import RulesWeights


class DefaultProposition(BaseModel):
    """One entry of the static default slate."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    proposition_id: str = Field(min_length=1, max_length=200)
    title: str
    category: str | None = None


class RankingSettings(BaseModel):
    """Candidates, the model, the rules, and what comes of a decision."""

    suggest_deadline_ms: int = Field(
        80,
        ge=1,
        le=60_000,
        description="Milliseconds in which a slate is answered; what would overrun is skipped in favour of the "
        "next degradation level. A request may lower it with `X-Deadline-Ms`.",
    )
    candidate_budget: int = Field(
        500,
        ge=1,
        description="Most propositions that are scored per request; smaller catalogs are scored whole.",
    )
    new_below_impressions: float = Field(
        20.0, ge=0, description="A proposition with fewer (decayed) impressions than this is new."
    )
    candidate_features_max_age_s: float = Field(
        5.0,
        gt=0,
        description="Seconds for which the counters of candidates may lack an event. Where there was none they only "
        "decay, and are at most six times as old.",
    )
    scorer_memory_mb: int = Field(
        256, ge=1, description="Memory per worker for what scoring knows of candidates in each context."
    )
    suggest_cache_ttl_s: float = Field(
        30.0,
        ge=0,
        description="Seconds for which a slate answers equal requests of its user, until an event of the user, "
        "another model or a changed catalog. 0: never.",
    )
    rules_weight_frequency: float = Field(1.0, ge=0, description="Rules: weight of the smoothed click rate.")
    rules_weight_recency: float = Field(
        0.1, ge=0, description="Rules: weight of how lately anything happened."
    )
    rules_weight_context: float = Field(
        1.0, ge=0, description="Rules: weight of the click rate in this context."
    )
    rules_recency_half_life_s: float = Field(
        86_400.0, gt=0, description="Rules: half-life of recency in seconds."
    )
    default_slate: tuple[DefaultProposition, ...] = Field(
        (DefaultProposition(proposition_id="explore", title="See what is new"),),
        min_length=1,
        description="Propositions to show when there is nothing else, best first, as a JSON list of "
        '{"proposition_id", "title", "category"}.',
    )

    snapshot_refresh_s: float = Field(
        1.0,
        gt=0,
        description="Seconds between looks for changed propositions, features and models. A change is seen within "
        "three times this, or a few seconds for millions of propositions.",
    )
    decision_queue_size: int = Field(
        10_000,
        ge=1,
        description="Decisions that may wait to be logged; further ones are dropped and counted.",
    )
    decision_features_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of the decisions by the model that are logged with the features that it read, for "
        "`propositions skew` to compare with what training would have read. 0: none.",
    )

    @property
    def rules_weights(self) -> RulesWeights:
        return RulesWeights(
            frequency=self.rules_weight_frequency,
            recency=self.rules_weight_recency,
            context=self.rules_weight_context,
            recency_half_life_s=self.rules_recency_half_life_s,
        )

    @property
    def suggest_cache_ttl(self) -> timedelta:
        return timedelta(seconds=self.suggest_cache_ttl_s)
