"""Every error modelbake raises, and the exit code each one ends the program with.

    ModelbakeError                1   (never raised itself)
    +-- UsageError                2   the command line asks for something that does not exist
    +-- ConfigError              10   models.yaml or runtime.yaml is wrong
    |   +-- UnfitModel           14   the locked files are not what the runtime serves, or are pickles
    +-- LockError                11   models.lock cannot be read, or is not what `lock` writes
    |   +-- LockMissing          12   the model is not in models.lock
    |   +-- LockDrift            13   models.lock no longer says what models.yaml asks for
    +-- SourceError              20   a source answered something we cannot use
    |   +-- SourceAuthError      21   the token is missing, wrong, or may not read this repository
    |   +-- SourceGatedError     22   the repository's terms have to be accepted first
    |   +-- SourceNotFound       23   no such repository (or it is private and there is no token)
    |   +-- RevisionNotFound     24   the repository has no such branch, tag or commit
    |   +-- NoMatchingFiles      25   include/exclude select nothing
    |   +-- SourceUnavailable    26   the source cannot be reached
    |   +-- WrongBytes           27   a file's bytes are not the locked ones
    |   +-- NotConvertible       28   a pickle that `convert` is asked for cannot become safetensors
    +-- RenderError              30   a template or a build context cannot be made
    |   +-- UnplannedInstruction 31   the Dockerfile has an instruction that the plan has not, or lacks one
    +-- EngineError              40   the Docker engine answered something we cannot use
    |   +-- EngineNotFound       41   no engine answers
    |   +-- EngineTooOld         42   the engine lacks BuildKit features that the Dockerfile needs
    |   +-- SecretMissing        44   the build needs a secret that was not given
    |   +-- BuildFailed          45   a build step failed
    |   +-- ImageNotFound        46   the image has not been built, or is not of this lock
    |   +-- ImageTooLarge        47   the image is larger than `max_size` allows
    +-- DiskFull                 43   a disk is full, or too small: the engine's, the registry's, or one here
    +-- SmokeError               50   the smoke run could not be carried out
    |   +-- SmokeFailed          51   an answer was not the expected one
    |   +-- NotReady             52   the container ended, or did not become ready in time
    |   +-- GpuUnavailable       53   the model needs a GPU and the engine has none, or none that it can use
    |   +-- GoldenError          54   a golden answer is missing, or is not what a check asks for
    |   +-- PerformanceRegressed 55   it is worse than the last released version, by more than is tolerated
    +-- RegistryError            60   the registry answered something we cannot use
    |   +-- RegistryUnavailable  61   the registry cannot be reached
    |   +-- RegistryAuthError    62   the registry refused the credentials
    |   +-- TagConflict          63   the version tag already names another digest
    |   +-- PushFailed           64   the engine could not push the image
    |   +-- ReadBackMismatch     65   the registry holds something else than was pushed
    |   +-- ReportMissing        66   no passing smoke report for this very image
    |   +-- RegistryLimit        67   the registry's limits do not take these layers
    |   +-- RuntimeMissing       68   the registry has no runtime image, and none can be built here
    |   +-- DeleteRefused        78   the registry does not delete
    +-- LayoutError              69   a folder is no OCI layout, or cannot be read or written
    +-- DoctorFailed             70   `doctor` found something to fix
    +-- AuditFailed              71   `audit` found something that must not be in the image
    +-- ReleaseError             72   a release or a channel cannot become what is asked for
    |   +-- NotReleased          73   the registry has no such version
    |   +-- ChannelMoved         74   somebody else moved the channel, by hand or at the same time
    |   +-- PolicyRefused        75   the version lacks what the channel requires
    +-- SignatureError           76   an image is not signed, or not by whom it should be
    |   +-- SigningFailed        77   the image could not be signed
    +-- BackupError              79   a backup cannot be written, read or restored
    +-- VerifyFailed             80   `verify` found that an image is not what it should be
    +-- ClusterError             90   a Dask cluster cannot be reached, or cannot do the work
    +-- Interrupted             130   Ctrl-C

Only `modelbake.cli` catches these. Code that talks to the outside translates foreign exceptions into
them with `raise ... from`, so that a traceback always means a defect of modelbake.
"""

from __future__ import annotations


class ModelbakeError(Exception):
    """An error with a subject (what it is about), a message (what is wrong) and a hint (what to do)."""

    exit_code = 1

    def __init__(self, message: str, *, subject: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.subject = subject
        self.hint = hint

    def __str__(self) -> str:
        """Return `subject: message`, with the hint on lines of its own."""
        text = f"{self.subject}: {self.message}" if self.subject else self.message
        return f"{text}\n  hint: {self.hint}" if self.hint else text


class UsageError(ModelbakeError):
    """The command line asks for something that does not exist."""

    exit_code = 2


class ConfigError(ModelbakeError):
    """models.yaml or runtime.yaml is wrong; the message has one `file:line:column: key: problem` a line."""

    exit_code = 10


class UnfitModel(ConfigError):
    """A model's locked files are not what its runtime can serve, or hold pickles that nobody asked for."""

    exit_code = 14


class LockError(ModelbakeError):
    """models.lock cannot be read, or holds what `lock` never writes."""

    exit_code = 11


class LockMissing(LockError):
    """The model is not in models.lock."""

    exit_code = 12


class LockDrift(LockError):
    """models.lock no longer says what models.yaml, or the upstream repository, says."""

    exit_code = 13


class SourceError(ModelbakeError):
    """A source answered something we cannot use."""

    exit_code = 20


class SourceAuthError(SourceError):
    """The token is missing, wrong, or may not read this repository."""

    exit_code = 21


class SourceGatedError(SourceError):
    """The repository's terms have to be accepted first."""

    exit_code = 22


class SourceNotFound(SourceError):
    """There is no such repository, or it is private and no token was given."""

    exit_code = 23


class RevisionNotFound(SourceError):
    """The repository has no such branch, tag or commit."""

    exit_code = 24


class NoMatchingFiles(SourceError):
    """`include` and `exclude` together select no file."""

    exit_code = 25


class SourceUnavailable(SourceError):
    """The source cannot be reached, or keeps failing."""

    exit_code = 26


class WrongBytes(SourceError):
    """A file's bytes are not the locked ones."""

    exit_code = 27


class NotConvertible(SourceError):
    """A pickle cannot be converted: it holds more than tensors, or nothing says which tensors are meant."""

    exit_code = 28


class RenderError(ModelbakeError):
    """A template or a build context cannot be made."""

    exit_code = 30


class UnplannedInstruction(RenderError):
    """The rendered Dockerfile has other instructions than the plan says, so no engine may see it."""

    exit_code = 31


class EngineError(ModelbakeError):
    """The Docker engine answered something we cannot use."""

    exit_code = 40


class EngineNotFound(EngineError):
    """No Docker engine answers."""

    exit_code = 41


class EngineTooOld(EngineError):
    """The engine lacks a BuildKit feature that the Dockerfile needs."""

    exit_code = 42


class SecretMissing(EngineError):
    """The build needs a secret that was not given."""

    exit_code = 44


class BuildFailed(EngineError):
    """A build step failed."""

    exit_code = 45


class ImageNotFound(EngineError):
    """The image has not been built here, or was built from another lock."""

    exit_code = 46


class ImageTooLarge(EngineError):
    """The image, unpacked, is larger than the model's `max_size`."""

    exit_code = 47


class DiskFull(ModelbakeError):
    """A disk is full, or too small for this plan: the engine's, the registry's, or one of this machine."""

    exit_code = 43


class SmokeError(ModelbakeError):
    """The smoke run could not be carried out."""

    exit_code = 50


class SmokeFailed(SmokeError):
    """An answer was not the expected one."""

    exit_code = 51


class NotReady(SmokeError):
    """The container ended, or did not become ready in time."""

    exit_code = 52


class GpuUnavailable(SmokeError):
    """The model needs a GPU and the engine has none, or none that this image can use."""

    exit_code = 53


class GoldenError(SmokeError):
    """A golden answer is missing, answers another request, or its file is unusable."""

    exit_code = 54


class PerformanceRegressed(SmokeError):
    """The version is slower, or takes more, than the last released one, by more than is tolerated."""

    exit_code = 55


class RegistryError(ModelbakeError):
    """The registry answered something we cannot use."""

    exit_code = 60


class RegistryUnavailable(RegistryError):
    """The registry cannot be reached, or keeps failing."""

    exit_code = 61
    after = 0.0  # seconds that the registry asks to wait before the next try


class RegistryAuthError(RegistryError):
    """The registry refused the credentials, or there are none for it."""

    exit_code = 62


class TagConflict(RegistryError):
    """The version tag already names another digest."""

    exit_code = 63


class PushFailed(RegistryError):
    """The engine could not push the image."""

    exit_code = 64


class ReadBackMismatch(RegistryError):
    """What the registry gives back is not what was pushed."""

    exit_code = 65


class ReportMissing(RegistryError):
    """There is no passing smoke report for this very image."""

    exit_code = 66


class RegistryLimit(RegistryError):
    """A layer is larger, or there are more of them, than the registry takes."""

    exit_code = 67


class RuntimeMissing(RegistryError):
    """The registry does not have the runtime's image, and no engine is there to build it."""

    exit_code = 68


class DeleteRefused(RegistryError):
    """The registry does not delete, or not for these credentials."""

    exit_code = 78


class LayoutError(ModelbakeError):
    """A folder is not an OCI layout, or it cannot be read or written."""

    exit_code = 69


class DoctorFailed(ModelbakeError):
    """`doctor` found something that has to be fixed first."""

    exit_code = 70


class AuditFailed(ModelbakeError):
    """`audit` found something that must not be in the image; what it is was printed."""

    exit_code = 71


class ReleaseError(ModelbakeError):
    """A release or a channel cannot become what is asked for; nothing was changed."""

    exit_code = 72


class NotReleased(ReleaseError):
    """The registry has no such version of the model."""

    exit_code = 73


class ChannelMoved(ReleaseError):
    """Somebody else moved the channel: by hand, or at the same time."""

    exit_code = 74


class PolicyRefused(ReleaseError):
    """The version lacks what the channel requires."""

    exit_code = 75


class SignatureError(ModelbakeError):
    """An image is not signed, or not by whom models.yaml says."""

    exit_code = 76


class SigningFailed(SignatureError):
    """The image could not be signed: the program is missing, or says so."""

    exit_code = 77


class BackupError(ModelbakeError):
    """A backup cannot be written, read or restored."""

    exit_code = 79


class VerifyFailed(ModelbakeError):
    """`verify` found that an image is not what it should be; what it is was printed."""

    exit_code = 80


class ClusterError(ModelbakeError):
    """A Dask cluster cannot be reached, is not fit for the work, or lost those who did it."""

    exit_code = 90


class Interrupted(ModelbakeError):
    """The user pressed Ctrl-C."""

    exit_code = 130
