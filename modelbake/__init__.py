"""modelbake: private model weights plus a runtime become a verified, slim CUDA image in a private registry.

Data flows one way:

    models.yaml --lock--> models.lock --plan--> BuildPlan --render--> Dockerfile + context
      --engine (Docker SDK + BuildKit)--> local image --smoke--> report --push--> registry

Only `lock` turns names into facts; nothing after it asks a hub what a name means today.
`config`, `lock`, `plan`, `render` and `context` are pure but for reading and writing their one file;
`sources`, `engine`, `buildkit` and `registry` each own one kind of conversation with the outside.
"""

__version__ = "0.1.0"
