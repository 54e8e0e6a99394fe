"""What models.yaml says of releases: the channels and what they require, and how images are signed."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from modelbake import grammar
from modelbake.validation import Entry, Number, Text, refusal

Requirement = Literal["signature", "gpu_report", "audit"]
ChannelName = Annotated[str, Text(grammar.CHANNEL)]


class SoakEntry(Entry):
    """How long a version has to have been in another channel before."""

    channel: ChannelName = Field(description="The channel it has to have been in.", examples=["staging"])
    hours: Annotated[float, Number("a number of hours above 0, at most 8760", 0, 8760, above=True)] = Field(
        description="For how many hours without a break, up to now.", examples=[24]
    )


class ChannelEntry(Entry):
    """What a version has to have before a channel may point at it."""

    require: tuple[Requirement, ...] = Field(
        default=(),
        strict=False,
        description="signature: a valid one by `signing`. gpu_report: a passing report of a run on a GPU."
        " audit: a clean audit of this very image. What is not named is not asked for.",
        examples=[["signature", "gpu_report", "audit"]],
    )
    soak: SoakEntry | None = Field(
        default=None, description="Where a version has to have been first, and for how long."
    )


class SigningEntry(Entry):
    """Whose signature counts: a public key's, or that of an identity that an issuer vouches for."""

    explained = MappingProxyType(
        {
            "key": "write 'public_key'; the private one is named by MODELBAKE_SIGNING_KEY in the environment",
            **dict.fromkeys(
                ("private_key", "password"),
                "in the environment: MODELBAKE_SIGNING_KEY names the private key, COSIGN_PASSWORD has its"
                " password",
            ),
        }
    )

    public_key: Annotated[str, Text(grammar.KEY)] | None = Field(
        default=None,
        description="What signatures are verified with: a PEM file, relative to models.yaml, or a KMS URI.",
        examples=["cosign.pub", "awskms:///alias/modelbake"],
    )
    identity: Annotated[str, Text(grammar.LINE)] | None = Field(
        default=None,
        description="Keyless: the certificate's identity, such as the URL of the CI workflow.",
        examples=["https://github.com/acme/models/.github/workflows/release.yml@refs/heads/main"],
    )
    issuer: Annotated[str, Text(grammar.HUB)] | None = Field(
        default=None,
        description="Keyless: who vouches for the identity.",
        examples=["https://token.actions.githubusercontent.com"],
    )
    transparency_log: bool = Field(
        default=False,
        description="Write signatures to the public transparency log, and ask for that when verifying. It"
        " makes the image's name public. Keyless signatures need it.",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        keyless = self.identity is not None or self.issuer is not None
        if (self.public_key is not None) == keyless:
            raise refusal("expected either 'public_key', or 'identity' and 'issuer'")
        if keyless and (self.identity is None or self.issuer is None):
            raise refusal("a keyless signature is verified by both 'identity' and 'issuer'")
        if keyless and not self.transparency_log:
            raise refusal("keyless signatures need 'transparency_log: true': their certificates live minutes")
        return self


USUAL_CHANNELS = MappingProxyType({"staging": ChannelEntry(), "production": ChannelEntry()})
