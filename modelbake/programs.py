"""What of images/ travels with a build context, and into which stages. Nothing that is not listed does."""

from __future__ import annotations

PROGRAMS = (
    "builder/accelerate.py",
    "builder/addresses.py",
    "builder/answers.py",
    "builder/carried.py",
    "builder/events.py",
    "builder/fetch.py",
    "builder/hub.py",
    "builder/install.py",
    "builder/manifest.py",
    "builder/persistence.py",
    "builder/pip_errors.py",
    "builder/requirements.txt",
    "builder/samples.py",
    "builder/slim.py",
    "builder/slim_rules.py",
    "builder/store.py",
    "builder/stub.py",
    "builder/transfer.py",
    "builder/tree.py",
    "start/chat_parameters.py",
    "start/chat_service.py",
    "start/load_report.py",
    "builder/venvs.py",
    "start/model_metrics.py",
    "start/openai_api.py",
    "start/probe.py",
    "start/serving.py",
    "start/start.py",
    "start/weight_files.py",
    "start/weight_headers.py",
    "start/weight_sample.py",
)
# And with the context of a model that is converted.
CONVERTS = ("builder/convert.py", "builder/requirements.converter.txt", "builder/state_dict.py")
ADMITS = "builder/admit.py"
CONVERTERS = (*CONVERTS, ADMITS)
# What installs packages, and what slims them.
INSTALLERS = ("builder/install.py", "builder/pip_errors.py", "builder/venvs.py")
SLIMMERS = ("builder/slim.py", "builder/slim_rules.py", "builder/stub.py")
# What travels with the context of a runtime alone.
RUNTIME_PROGRAMS = tuple(
    program for program in PROGRAMS if program.startswith("start/") or program in (*INSTALLERS, *SLIMMERS)
)
# A changed rule of slimming must not fetch weights again, so their stages do not have these.
FETCHERS = (
    *(program for program in PROGRAMS if program.startswith("builder/") and program not in SLIMMERS),
    "start/weight_sample.py",
)
# What the stages that convert have beside what they do it with.
BASICS = (
    *("builder/events.py", "builder/manifest.py", "builder/samples.py", "builder/tree.py"),
    "start/weight_sample.py",
)
