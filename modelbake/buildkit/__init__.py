"""BuildKit through the Docker engine: how a context, some secrets and a Dockerfile become an image.

wire      protocol buffers, read and written by hand: the few messages we need have no generated code
progress  what BuildKit reports while it works -> BuildEvents
session   the connection on which the engine asks us for secrets and registry credentials
solve     one build: over such a session, or through `buildx` where the engine has no sessions
buildx    the `docker buildx` fallback
failure   what the engine says when something went wrong -> modelbake.errors
"""
