"""What must not be in an image, looked for in all of it: every layer, the configuration, the history.

    images       where an image is: an engine, a registry, an OCI layout; its documents and its layers
    layer        one layer's tar, read once: what was seen in it, as facts
    content      the bytes of one file, as they stream by: tokens, canaries, pickles, what is packed in it
    tokens       what secrets look like            pickled    what pickles look like
    packed       what is compressed in a file      opinions   picklescan and fickling, for `--strict`
    documents    configuration, history, labels
    judging      facts and what is expected become findings
    rules        every rule: its id, how severe, what to do
    findings     what was found, as JSON and as a table        sarif    the same for code scanning

Bytes flow once, and nothing is kept but facts: memory does not grow with an image. Layers are read before it
is known what they belong to, because that is the order in which engines export them.
"""
