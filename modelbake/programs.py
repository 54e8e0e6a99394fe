"""What of images/ travels with a build context, and into which stages. Nothing that is not listed does."""

from __future__ import annotations

PROGRAMS = (
    "builder/accelerate.py",
    "builder/answers.py",
    "builder/events.py",
    "builder/fetch.py",
    "builder/hub.py",
    "builder/install.py",
    "builder/manifest.py",
    "builder/persistence.py",
    "builder/pip_errors.py",
    "builder/requirements.txt",
    "builder/slim.py",
    "builder/slim_rules.py",
    "builder/stub.py",
    "builder/transfer.py",
    "builder/tree.py",
    "start/chat_parameters.py",
    "start/load_report.py",
    "builder/venvs.py",
    "start/model_metrics.py",
    "start/openai_api.py",
    "start/probe.py",
    "start/serving.py",
    "start/start.py",
    "start/weight_files.py",
    "start/weight_headers.py",
)
# What installs packages, and what slims them.
INSTALLERS = ("builder/install.py", "builder/pip_errors.py", "builder/venvs.py")
SLIMMERS = ("builder/slim.py", "builder/slim_rules.py", "builder/stub.py")
# What travels with the context of a runtime alone.
RUNTIME_PROGRAMS = tuple(
    program for program in PROGRAMS if program.startswith("start/") or program in (*INSTALLERS, *SLIMMERS)
)
# A changed rule of slimming must not fetch weights again, so their stages do not have these.
FETCHERS = tuple(
    program for program in PROGRAMS if program.startswith("builder/") and program not in SLIMMERS
)
