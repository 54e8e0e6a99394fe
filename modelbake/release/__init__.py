"""From an image that passed its test to what runs on hosts, with the registry as the only store.

    candidate --release--> 1.4.2 (never moves), 1.4, 1   + SBOM, provenance, audit, signature beside it
    1.4.2 --promote--> production-0007 (a numbered record), then production
    production --rollback--> production-0008: the image of an earlier record

A version tag names one digest for ever. A channel is a moving tag that names the manifest of a released
version; each of its moves is a record, an OCI index of its own that lists that manifest (so that no garbage
collection takes it away) and says in its annotations who moved it, when, and what it was before.

`entries` is what models.yaml says of all this. The rest is one idea a module; whatever one of them decides is
a pure function over what was read, and every write is read back.
"""
