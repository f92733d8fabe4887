#!/usr/bin/env bash
# Flower 1.41.0: what `flwr supernode register` refuses, such as a key that is registered already, it reports with exit
# status 1; with --format json the same refusal ends with exit status 0, and only "success": false in the output tells it. A
# script under `set -e` that asks for JSON so goes on as if the device had been let in.
# Seen on Python 3.11, Linux x86_64. Takes about a minute. Fails if either status changes.
set -euo pipefail
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1

folder=$(mktemp -d) link=''
export FLWR_HOME="$folder/home"
end() {
    if [ -n "$link" ]; then kill "$link" 2>/dev/null || true; wait "$link" 2>/dev/null || true; fi
    rm -rf "$folder"
}
trap end EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check flwr==1.41.0

port=$(python3 -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
mkdir "$FLWR_HOME"
printf '[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:%s"\ninsecure = true\n' "$port" \
    >"$FLWR_HOME/config.toml"
ssh-keygen -q -t ecdsa -b 384 -N '' -f "$folder/key"
"$folder/env/bin/flower-superlink" --insecure --isolation process --port "$port" >"$folder/log" 2>&1 &
link=$!
for _ in $(seq 60); do if grep -q 'Uvicorn running' "$folder/log"; then break; fi; sleep 1; done

status() {
    local code=0
    "$folder/env/bin/flwr" supernode register "$folder/key.pub" here "$@" >"$folder/said" 2>&1 || code=$?
    echo "$code"
}

first=$(status --format json)
plain=$(status)
json=$(status --format json)
said=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["success"])' "$folder/said")
echo "registered: exit status $first; again: $plain; again, as JSON: $json with success = $said"
test "$first $plain $json $said" = "0 1 0 False"
