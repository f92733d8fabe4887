#!/usr/bin/env bash
# Flower 1.41.0: a SuperLink that keeps no database forgets its nodes when it restarts, and a SuperNode that was
# connected to it answers the first heartbeat's refusal by ending, with exit status 0. So a supervisor that restarts what
# fails (systemd's Restart=on-failure, a container's on-failure) leaves every device of the fleet down, for good;
# Restart=always brings them back. With --database the same SuperNode stays and goes on.
# Seen on Python 3.11, Linux x86_64. Takes a few minutes. Fails if either case ends otherwise.
set -euo pipefail
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1

folder=$(mktemp -d) link='' node=''
export FLWR_HOME="$folder/home"
end() {
    for process in $node $link; do kill "$process" 2>/dev/null || true; done
    sleep 2
    rm -rf "$folder"
}
trap end EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check flwr==1.41.0

free_ports() {
    python3 -c '
import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(one.getsockname()[1] for one in held))'
}

start_link() {
    "$folder/env/bin/flower-superlink" --insecure --isolation process --port "$port" "$@" >>"$folder/link" 2>&1 &
    link=$!
}

# What a SuperNode does when its SuperLink is killed and started again: "ends with N", or "stays".
restart() {
    read -r port device < <(free_ports)
    : >"$folder/node"
    start_link "$@"
    "$folder/env/bin/flower-supernode" --insecure --isolation process --port "$device" \
        --superlink "127.0.0.1:$port" >"$folder/node" 2>&1 &
    node=$!
    for _ in $(seq 60); do if grep -q 'Node ID' "$folder/node"; then break; fi; sleep 1; done
    kill -9 "$link"
    wait "$link" 2>/dev/null || true
    start_link "$@"
    said=stays
    for _ in $(seq 90); do
        if ! kill -0 "$node" 2>/dev/null; then
            status=0
            wait "$node" || status=$?
            said="ends with $status" node=''
            break
        fi
        sleep 1
    done
    for process in $node $link; do kill "$process" 2>/dev/null || true; done
    node='' link=''
}

restart
echo "without a database, the SuperNode $said"
without=$said
restart --database "$folder/state.db"
echo "with a database, the SuperNode $said"
test "$without" = "ends with 0"
test "$said" = "stays"
