"""Debian packages unpacked into the cache folder, without touching what is installed on the machine.

apt runs with its own state folder and its own sources list, derived from the machine's mirror setting, so the
machine's lists, pins and installed packages stay as they are. Packages are downloaded (apt checks their
signatures) and unpacked with ``dpkg -x``; no maintainer script runs, no service is enabled.

Standard library only: these scripts must run on a bare Debian machine.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

from local_service import Problem, locked, say

LISTS_FRESH_SECONDS = 24 * 3600
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def host_codename() -> str:
    """The machine's Debian codename, e.g. ``bookworm``.

    Raises:
        Problem: the machine is not Debian, or has no apt.
    """
    fields = {}
    try:
        for line in Path("/etc/os-release").read_text().splitlines():
            key, _, value = line.partition("=")
            fields[key] = value.strip('"')
    except OSError:
        pass
    if fields.get("ID") != "debian" or not fields.get("VERSION_CODENAME"):
        raise Problem(
            f"this machine is {fields.get('PRETTY_NAME', 'not Debian')}; the recipe is for Debian 12",
            "install Docker Engine the way your system does and set DOCKER_HOST, or run this on Debian",
        )
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise Problem(f"{tool} is missing", "install Docker Engine another way and set DOCKER_HOST")
    return fields["VERSION_CODENAME"]


def _machine_sources() -> list[tuple[Path, str]]:
    etc = Path("/etc/apt")
    files = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]
    return [(f, f.read_text()) for f in files if f.suffix in (".list", ".sources") and f.is_file()]


def sources_for(codename: str, here: str, machine: list[tuple[Path, str]]) -> tuple[str, str]:
    """The machine's entries with ``codename`` in place of ``here``: (one-line entries, deb822 stanzas).

    Everything else an entry says (mirror, key, options) is kept. Third-party entries, which name none of the
    suites ``here``, ``here-updates`` and ``here-security``, are left out, and so are deb-src and components
    other than main.
    """
    suites = {
        here: codename,
        f"{here}-updates": f"{codename}-updates",
        f"{here}-security": f"{codename}-security",
    }
    suites[f"{here}/updates"] = f"{codename}-security"
    lines, stanzas = [], []
    for path, text in machine:
        if path.suffix == ".list":
            for line in text.splitlines():
                match = re.match(r"\s*deb\s+(\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+(.*)", line)
                if match and match[3] in suites and "main" in match[4].split("#")[0].split():
                    lines.append(f"deb {match[1] or ''}{match[2]} {suites[match[3]]} main")
            continue
        for stanza in re.split(r"\n\s*\n", text):
            fields: dict[str, str] = {}
            for row in (r for r in stanza.splitlines() if r.strip() and not r.startswith("#")):
                if row[0].isspace():  # it continues the field above; a key block may stand in one
                    fields[list(fields)[-1]] += f"\n{row}"
                else:
                    name, _, value = row.partition(":")
                    fields[name.strip().lower()] = value
            kinds, parts = fields.pop("types", "").split(), fields.pop("components", "").split()
            wanted = [suites[s] for s in fields.pop("suites", "").split() if s in suites]
            enabled = fields.pop("enabled", "yes").strip().lower() not in ("no", "false", "0")
            if wanted and enabled and "deb" in kinds and "main" in parts:
                kept = [f"{name}:{value}" for name, value in fields.items()]
                ours = ["Types: deb", f"Suites: {' '.join(wanted)}", "Components: main"]
                stanzas.append("\n".join([*ours, *kept]))
    return "".join(f"{line}\n" for line in lines), "\n\n".join(stanzas) + ("\n" if stanzas else "")


class Release:
    """One Debian release: its package lists in our own apt state, its packages unpacked below ``root``."""

    def __init__(self, cache: Path, codename: str) -> None:
        self.codename = codename
        self.root = cache / "debian" / codename / "root"
        self.apt = cache / "debian" / codename / "apt"
        self._stamps = cache / "debian" / codename / "unpacked"

    def _options(self) -> list[str]:
        own = {
            "Dir::Etc::sourcelist": self.apt / "sources.list",
            "Dir::Etc::sourceparts": self.apt / "sources.list.d",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State": self.apt,
            "Dir::State::status": self.apt / "status",
            "Dir::Cache": self.apt,
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::GzipIndexes": "true",
            "Acquire::Retries": "3",
        }
        return [part for key, value in own.items() for part in ("-o", f"{key}={value}")]

    def refresh(self, *, force: bool = False) -> None:
        """Brings the package lists up to date, unless they are less than a day old."""
        stamp = self.apt / "updated"
        if not force and stamp.exists() and time.time() - stamp.stat().st_mtime < LISTS_FRESH_SECONDS:
            return
        lines, stanzas = sources_for(self.codename, host_codename(), _machine_sources())
        if not lines and not stanzas:
            lines = f"deb [signed-by={KEYRING}] http://deb.debian.org/debian {self.codename} main\n"
        for folder in ("lists/partial", "archives/partial", "sources.list.d"):
            (self.apt / folder).mkdir(parents=True, exist_ok=True)
        (self.apt / "status").touch()
        (self.apt / "sources.list").write_text(lines)
        (self.apt / "sources.list.d" / "machine.sources").write_text(stanzas)
        say(f"debian: reading the package lists of {self.codename}")
        done = subprocess.run(["apt-get", *self._options(), "-qq", "update"], capture_output=True, text=True)
        # apt-get update exits 0 on some failures (a mirror without that suite's lists): its words decide.
        failed = done.returncode or re.search(r"^(E:|Err:|W: (Failed|GPG))", done.stdout + done.stderr, re.M)
        if failed:
            hint = "is the mirror of /etc/apt reachable from here, and does it carry that release?"
            if "NO_PUBKEY" in done.stderr:
                hint = (
                    "the archive keys are too old: apt-get update && apt-get install debian-archive-keyring"
                )
            raise Problem(
                f"apt-get update for {self.codename} failed:\n{(done.stdout + done.stderr).strip()}", hint
            )
        stamp.touch()

    def unpack(self, *packages: str) -> None:
        """Downloads and unpacks the packages that are not there yet (exactly these: no dependencies)."""
        with locked(self.root.parent / "lock"):
            missing = [p for p in packages if not (self._stamps / p).exists()]
            if not missing:
                return
            self.refresh()
            debs = self._download(missing)
            self.root.mkdir(parents=True, exist_ok=True)
            self._stamps.mkdir(exist_ok=True)
            for package, deb in debs.items():
                self._run(["dpkg", "-x", str(deb), str(self.root)])
                (self._stamps / package).write_text(deb.name.split("_")[1].replace("%3a", ":") + "\n")
                deb.unlink()

    def version(self, package: str) -> str:
        """The version unpacked here, ``-`` where it is not."""
        try:
            return (self._stamps / package).read_text().strip()
        except OSError:
            return "-"

    def release_time(self) -> int:
        """When the archive published this point release, in seconds since 1970."""
        with locked(self.root.parent / "lock"):
            self.refresh()
        for listed in (self.apt / "lists").glob("*Release"):
            text = listed.read_text(errors="replace")
            # Not the -updates and -security suites, whose date changes by the day.
            date = re.search(r"^Date: (.+)$", text, re.M)
            if date and re.search(rf"^Codename: {self.codename}$", text, re.M):
                return int(parsedate_to_datetime(date[1].replace("UTC", "+0000")).timestamp())
        raise Problem(
            f"the mirror's lists name no {self.codename} release", "does the mirror carry the main suite?"
        )

    def sources_files(self) -> list[Path]:
        """Sources lists (one-line or deb822 files) that other tools can be given."""
        files = [self.apt / "sources.list", self.apt / "sources.list.d" / "machine.sources"]
        return [f for f in files if f.stat().st_size]

    def _download(self, packages: list[str]) -> dict[str, Path]:
        folder = self.apt / "archives"
        for old in folder.glob("*.deb"):
            old.unlink()
        say(f"debian: fetching {', '.join(packages)} ({self.codename})")
        command = ["apt-get", *self._options(), "-qq", "download", *packages]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:  # a point release has replaced what the lists name
            self.refresh(force=True)
            self._run(command, cwd=folder)
        found = {deb.name.split("_")[0]: deb for deb in folder.glob("*.deb")}
        absent = sorted(set(packages) - set(found))
        if absent:
            raise Problem(f"{self.codename} gave no {', '.join(absent)}", "is this architecture supported?")
        return {p: found[p] for p in packages}

    def _run(self, command: list[str], cwd: Path | None = None) -> None:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
        if done.returncode:
            output = (done.stdout + done.stderr).strip()
            raise Problem(
                f"{Path(command[0]).name} failed:\n{output}",
                "is the disk full, or the mirror unreachable?",
            )
