"""Warning about rows that lie outside the domain of a method's temperature policies."""

from workers.events import Log
from workers.training.run import RunState

_WARNED_SHARE = 0.01


def warn_of_domain(run_state: RunState) -> None:
    """Say so after the first epoch in which more than 1 % of the rows were outside, and never again in the run."""
    *earlier, line = (metrics.get("outside_domain") or 0.0 for metrics in run_state.metrics)
    if line <= _WARNED_SHARE or any(share > _WARNED_SHARE for share in earlier):
        return
    policies = {term.policy.kind: term.policy.domain for term in run_state.method.terms}
    domains = "; ".join(f"domain of policy {kind!r}: {domain}" for kind, domain in policies.items() if domain)
    where = f"{line:.1%} of the rows of epoch {run_state.epoch} lie outside the domain of its temperatures"
    advice = "the metric outside_domain has the share of every epoch; preview the method on this cache"
    message = f"method {run_state.method.name!r}: {where}: {domains}; {advice}, or take another policy"
    run_state.emit(Log(level="warning", message=message))
