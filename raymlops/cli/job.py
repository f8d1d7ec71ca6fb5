"""The scripts in ``jobs/``: a verb with the same options, run without confirmation; the last line is its result."""

from __future__ import annotations

import sys
from typing import NoReturn

from raymlops.cli.app import main

_ASK = {"deploy", "pipeline"}
"""Verbs that ask for confirmation: submitting the job is the answer."""


def run_job(verb: str) -> NoReturn:
    """Run ``raymlops VERB`` with this script's arguments, end its log with ``RAYMLOPS_RESULT {json}``, and exit.

    Raises:
        SystemExit: with the exit code of the verb.
    """
    yes = ["--yes"] if verb in _ASK else []
    sys.exit(main([verb, *yes, *sys.argv[1:]], result=True))
