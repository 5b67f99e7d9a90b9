"""Catalog of temperature policies. To add one: a file beside this with its class and function, and an entry here."""

from collections.abc import Callable

from workers.methods.policies.annealed import Annealed, annealed
from workers.methods.policies.asymmetric import Asymmetric, asymmetric
from workers.methods.policies.base import Policy, Temperatures
from workers.methods.policies.dtkd import Dtkd, dtkd
from workers.methods.policies.expression import Expression, expression
from workers.methods.policies.fixed import Fixed, fixed
from workers.methods.policies.learned import Learned, learned
from workers.methods.policies.max_logit import MaxLogit, max_logit
from workers.methods.policies.normkd import Normkd, normkd
from workers.methods.policies.standardize import Standardize, standardize

_ALL: tuple[tuple[type[Policy], Callable[..., Temperatures]], ...] = (
    (Fixed, fixed),
    (Dtkd, dtkd),
    (Normkd, normkd),
    (Standardize, standardize),
    (MaxLogit, max_logit),
    (Annealed, annealed),
    (Asymmetric, asymmetric),
    (Learned, learned),
    (Expression, expression),
)

POLICY_CLASSES: dict[str, type[Policy]] = {each.model_fields["kind"].default: each for each, _ in _ALL}
"""Configuration of a policy by its ``kind``."""

POLICIES: dict[str, Callable[..., Temperatures]] = {each.model_fields["kind"].default: of for each, of in _ALL}
"""Function of a policy by its ``kind``: (student statistics, teacher statistics, config, batch) -> temperatures."""
