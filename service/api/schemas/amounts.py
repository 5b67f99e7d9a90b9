"""Limits of a job's methods, counted before anything of them is parsed."""

from collections.abc import Mapping

from workers.errors import InvalidJob

# Of a job's temperature expressions in all: parsing so many takes 0.1 s.
EXPRESSIONS_CHARACTERS_MAX = 1 << 16
# Of the terms that its methods spell out: reading so many takes 0.05 s.
TERMS_MAX = 4096


def check_amount(methods: object) -> None:
    """Limit the terms and the temperature expressions of a job's methods, as they were posted.

    Raises:
        InvalidJob.
    """
    terms = _terms(methods)
    if terms > TERMS_MAX:
        raise InvalidJob(f"the job's methods have {terms} terms in all, at most {TERMS_MAX} are allowed: split the job")
    count = _expression_characters(methods)
    if count > EXPRESSIONS_CHARACTERS_MAX:
        raise InvalidJob(
            f"the expressions of the job's methods have {count} characters in all, at most "
            f"{EXPRESSIONS_CHARACTERS_MAX} are allowed: split the job"
        )


def all_methods(job: Mapping[str, object]) -> list[object]:
    """Methods of a job as it was posted, with those of its added blocks; what is no list has none."""
    added = job.get("added")
    blocks = [job, *(each for each in added if isinstance(each, Mapping))] if isinstance(added, list) else [job]
    return [method for block in blocks if isinstance(each := block.get("methods"), list) for method in each]


def _terms(methods: object) -> int:
    """Count the terms that methods spell out, as they were posted."""
    spelt = (
        [method.get("terms") for method in methods if isinstance(method, Mapping)] if isinstance(methods, list) else []
    )
    return sum(len(terms) for terms in spelt if isinstance(terms, list))


def _expression_characters(value: object) -> int:
    """Count the characters of all texts in the expression policies of a method as it was posted, or of several."""
    if isinstance(value, Mapping):
        if value.get("kind") == "expression":
            return sum(len(text) for name, text in value.items() if name != "kind" and isinstance(text, str))
        return sum(map(_expression_characters, value.values()))
    return sum(map(_expression_characters, value)) if isinstance(value, list | tuple) else 0
