"""All checks, in the order in which a reader wants them, and what they say about a survey."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.lint import actions, collection, motion, pictures, ranges
from data_pipelines.lint.finding import Check, Finding, Severity
from data_pipelines.lint.survey import Survey

CHECKS: tuple[Check, ...] = (
    *collection.CHECKS,
    *actions.CHECKS,
    *ranges.CHECKS,
    *motion.CHECKS,
    *pictures.CHECKS,
)

Findings = Mapping[str, Sequence[Finding]]


def lint(survey: Survey) -> dict[str, list[Finding]]:
    """Check -> its findings, worst first; an empty list where it is content."""
    return {check.name: sorted(check.run(survey), key=lambda finding: -finding.severity) for check in CHECKS}


def worst(findings: Findings) -> Severity | None:
    return max((finding.severity for found in findings.values() for finding in found), default=None)


def to_json(survey: Survey, findings: Findings) -> dict[str, Any]:
    """JSON-able: what was looked at, and every finding with its numbers."""
    return {
        "dataset": survey.name,
        "embodiment": survey.embodiment.name if survey.embodiment else None,
        "against": survey.against or None,
        "episodes": {"total": survey.total, "looked_at": len(survey.episodes), "unreadable": len(survey.bad)},
        "findings": [
            {
                "check": check,
                "severity": finding.severity.name.lower(),
                "text": finding.text,
                "numbers": finding.numbers,
                "places": [dataclasses.asdict(place) for place in finding.places],
            }
            for check, found in findings.items()
            for finding in found
        ],
    }
