"""How often something happens lately, and how surprising a count is.

A count of a window is taken for the Poisson number of a rate that is known as well as the windows before tell, which weigh
the less the older they are. It is negative binomial then (Gelman et al., *Bayesian Data Analysis*, 3rd ed., section 2.6), for
forgetting by decaying sums keeps the rate's gamma distribution gamma (J. Q. Smith, JRSS B 41, 1979). Its variance is
made wider by the index of dispersion, the mean of the squared Pearson residuals of the windows before: what comes
irregularly is less surprising.
"""

from dataclasses import dataclass, field

from scipy.special import betainc

# Counts are taken for as regular as Poisson's until more windows than these say otherwise.
PRIOR_WINDOWS = 10.0
# Below, a single event is no sign of irregularity.
LEAST_VARIANCE = 0.5
# Half an event, and half a window with any, before anything is known (Jeffreys' priors of a rate and of a share).
PRIOR = 0.5
# Further events of a window with any, before anything is known.
PRIOR_FURTHER = 0.25
MOST = 1 << 40


@dataclass(slots=True)
class Dispersion:
    residuals: float = 0.0
    windows: float = 0.0

    @property
    def index(self) -> float:
        return max(1.0, (self.residuals + PRIOR_WINDOWS) / (self.windows + PRIOR_WINDOWS))

    def learn(self, count: float, mean: float) -> None:
        self.residuals += (count - mean) ** 2 / max(mean, LEAST_VARIANCE)
        self.windows += 1.0

    def forget(self, keep: float) -> None:
        self.residuals *= keep
        self.windows *= keep


def chance_of_at_least(count: float, mean: float, dispersion: float, windows: float) -> float:
    """Of a negative binomial number with this mean, which so many windows tell."""
    if count <= 0:
        return 1.0
    excess = (dispersion - 1.0) * mean + mean / max(windows, 1.0)  # beyond Poisson's variance
    return float(betainc(count, mean * mean / excess, excess / (mean + excess)))


@dataclass(slots=True)
class Traffic:
    """Of what comes all the time. `keep` is what is left of a weight after one window, `keep_dispersion` what is left of
    what is known of the irregularity."""

    keep: float
    keep_dispersion: float
    windows: float = 0.0
    total: float = 0.0
    dispersion: Dispersion = field(default_factory=Dispersion)

    @property
    def mean(self) -> float:
        """Expected in the next window."""
        return (self.total + PRIOR) / max(self.windows, 1.0)

    def chance_of_at_most(self, count: float) -> float:
        """Probability of so many or less in one window."""
        return 1.0 - chance_of_at_least(count + 1, self.mean, self.dispersion.index, self.windows)

    def learn(self, count: float) -> None:
        """Counts a window."""
        self.dispersion.forget(self.keep_dispersion)
        if self.windows:
            self.dispersion.learn(count, self.mean)
        self.windows = self.windows * self.keep + 1.0
        self.total = self.total * self.keep + count


@dataclass(slots=True)
class Trouble:
    """Of what comes rarely, and then often in clusters: a window has any with some chance, and if so, one and a further
    number (a hurdle model: J. Mullahy, *Journal of Econometrics* 33, 1986)."""

    keep: float
    windows: float = 0.0
    active: float = 0.0
    further: float = 0.0
    dispersion: Dispersion = field(default_factory=Dispersion)

    @property
    def mean(self) -> float:
        """Expected in the next window."""
        return self._chance_of_any() * (1.0 + self._further_mean())

    def chance_of_at_least(self, count: float) -> float:
        """Probability of so many or more in one window."""
        if count <= 0:
            return 1.0
        further = chance_of_at_least(count - 1, self._further_mean(), self.dispersion.index, self.active)
        return self._chance_of_any() * further

    def surprising_count(self, chance: float) -> int:
        """The least count whose probability, with all larger ones, is below `chance`."""
        too_few, enough = 0, 1
        while self.chance_of_at_least(enough) >= chance and enough < MOST:
            too_few, enough = enough, 2 * enough
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            if self.chance_of_at_least(middle) < chance:
                enough = middle
            else:
                too_few = middle
        return enough

    def learn(self, count: float) -> None:
        """Counts a window."""
        is_active = count > 0
        further = max(count - 1.0, 0.0)
        self.dispersion.forget(self.keep)
        if is_active and self.active:
            self.dispersion.learn(further, self._further_mean())
        self.windows = self.windows * self.keep + 1.0
        self.active = self.active * self.keep + is_active
        self.further = self.further * self.keep + further

    def _chance_of_any(self) -> float:
        return (self.active + PRIOR) / (self.windows + 2 * PRIOR)

    def _further_mean(self) -> float:
        return (self.further + PRIOR_FURTHER) / max(self.active, 1.0)
