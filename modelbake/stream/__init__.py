"""The stream lane: weights flow from the hub to the registry as reproducible layers, and touch no disk.

    lock --layers--> WeightLayer --flow (hub bytes, hashed on the way)--> Repository (registry or OCI layout)
    runtime image + weight layers --assembly--> one manifest --publish--> candidate, smoke run, version tag

`layers`, `weights`, `whiteouts`, `assembly`, `limits` and `forecast` are pure; `flow` hashes; a `Repository`
is the one that knows where things are kept; `publish` puts it all together, `release` tries it and tags it.
"""
