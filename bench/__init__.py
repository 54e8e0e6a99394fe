"""The benchmark of the stream lane, on real parts: `python -m bench`, or `make bench`.

    setting   engines, a registry and a hub of the bench's own, all removed at the end
    story     what happens in them: cold publishes beside what else one could do, then changes, then pulls
    rows      one function a row of the table, which says how it is measured
    results   the table, and results.json

`measure` looks at a process, `recorder` at what goes between a client and the registry, `sink` is a registry
that keeps no bytes. What modelbake is compared with: `naive`, `appended` (olot and skopeo), `floor`.
"""
