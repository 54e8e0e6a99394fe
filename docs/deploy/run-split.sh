#!/bin/sh
# Runtime and weights in two images, each updated alone. Docker Engine 28 or newer, with the containerd image store.
#
#     RUNTIME=registry.example.com/ml/runtimes@sha256:... WEIGHTS=registry.example.com/ml/minilm-weights@sha256:... \
#         sh run-split.sh
#
# RUNTIME: REGISTRY/runtimes:RUNTIME-..., which `publish` makes. WEIGHTS: a model of the runtime `weights`.
# Another digest of either starts anew; only what changed is pulled. GPUS="" where there is none. Registry: `docker login`.
set -eu
: "${RUNTIME:?REPOSITORY@sha256:... of the runtime}" "${WEIGHTS:?REPOSITORY@sha256:... of the weights}"
: "${NAME:=minilm}" "${GPUS=all}" "${PUBLISH:=127.0.0.1:8000}"
for image in "$RUNTIME" "$WEIGHTS"; do
    case $image in
        *@sha256:*) docker image inspect "$image" > /dev/null 2>&1 || docker pull --quiet "$image" ;;
        *) echo "run-split.sh: $image names no digest" >&2; exit 2 ;;
    esac
done
docker rm --force "$NAME" > /dev/null 2>&1 || true
# The image of the weights brings the program that compares them with their manifest; that starts the runtime's server.
server=$(docker image inspect --format '{{range .Config.Cmd}}{{println .}}{{end}}' "$RUNTIME")
# shellcheck disable=SC2086 # the command is words, none of which has a space
exec docker run --detach --name "$NAME" --restart unless-stopped ${GPUS:+--gpus "$GPUS"} \
    --mount type=image,source="$WEIGHTS",destination=/weights --env MODELBAKE_WEIGHTS=/weights/models \
    --user 65532:65532 --read-only --tmpfs /tmp:mode=1777,size=1g --cap-drop ALL \
    --security-opt no-new-privileges --memory 16g --cpus 4 --pids-limit 512 \
    --env MODELBAKE_MODEL="$NAME" --env MODELBAKE_DRAIN_SECONDS=25 --stop-timeout 30 \
    --publish "$PUBLISH":8000 \
    --health-cmd "/opt/venv/bin/python -c 'import urllib.request as r; r.urlopen(\"http://127.0.0.1:8000/health\", timeout=5)'" \
    --health-interval 5s --health-timeout 10s --health-retries 3 --health-start-period 15m \
    --entrypoint /opt/venv/bin/python "$RUNTIME" /weights/modelbake/start.py $server
